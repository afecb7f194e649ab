//! The helper process that unpacks and removes images inside a user namespace.
//!
//! ```text
//! store                                        helper (single-threaded, stdin/stdout are pipes)
//!   spawn                              ───▶
//!                                      ◀───    "ready\n"        after unshare(NEWUSER), when not root
//!   newuidmap, newgidmap (or one id)
//!   one JSON line: Job                 ───▶    chroot, apply layers | remove folder
//!                                      ◀───    one JSON line: Outcome
//! ```
//! The helper is a program that calls [`main`] before it starts any thread: a process with threads may not
//! make a user namespace for itself. hpk-kubelet does so for its hidden command `image-helper`.

use crate::layer::{self, Options, Report};
use crate::manifest::Compression;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

/// A region of a file that holds one layer, compressed or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerInput {
    pub(crate) path: PathBuf,
    /// Bytes.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u64,
}

/// What the helper shall do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Apply layers, bottom first, to an empty folder.
    Unpack { rootfs: PathBuf, layers: Vec<LayerInput>, owners: bool },
    /// Remove a folder whose files belong to subordinate ids.
    Remove { path: PathBuf },
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Outcome {
    Done(Report),
    Failed(String),
}

/// Runs the helper's side; exit code 0 whenever the outcome could be reported.
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The store reads stderr into its error.
            eprintln!("image helper: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    if !Uid::effective().is_root() {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| {
            std::io::Error::other(format!("cannot make a user namespace ({e}); `hpk doctor` says more"))
        })?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready")?;
    stdout.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line)?;
    let outcome = match perform(job) {
        Ok(report) => Outcome::Done(report),
        Err(text) => Outcome::Failed(text),
    };
    writeln!(stdout, "{}", serde_json::to_string(&outcome)?)?;
    stdout.flush()
}

fn perform(job: Job) -> Result<Report, String> {
    match job {
        Job::Unpack { rootfs, layers, owners } => unpack(&rootfs, &layers, owners),
        Job::Remove { path } => match std::fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {e}", path.display())),
            _ => Ok(Report::default()),
        },
    }
}

fn unpack(rootfs: &Path, layers: &[LayerInput], owners: bool) -> Result<Report, String> {
    // Opened before the chroot hides them.
    let mut open = Vec::new();
    for layer in layers {
        open.push(layer.open().map_err(|e| format!("open {}: {e}", layer.path.display()))?);
    }
    nix::unistd::chroot(rootfs).map_err(|e| format!("chroot {}: {e}", rootfs.display()))?;
    nix::unistd::chdir("/").map_err(|e| format!("chdir: {e}"))?;
    let mut report = Report::default();
    for (n, (input, file)) in layers.iter().zip(open).enumerate() {
        decompress(file)
            .map_err(|e| e.to_string())
            .and_then(|r| layer::apply(r, Options { owners }, &mut report).map_err(|e| e.to_string()))
            .map_err(|e| format!("layer {n} ({}): {e}", input.path.display()))?;
    }
    Ok(report)
}

/// Reads a layer whatever its compression.
fn decompress(file: impl Read + 'static) -> std::io::Result<Box<dyn Read>> {
    let mut reader = BufReader::with_capacity(1 << 18, file);
    Ok(match Compression::sniff(reader.fill_buf()?) {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(BufReader::with_capacity(
            1 << 18,
            ruzstd::decoding::StreamingDecoder::new(reader).map_err(std::io::Error::other)?,
        )),
    })
}

/// A helper's failure, with its own words.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    #[error("cannot start the image helper {program:?}: {source}")]
    Start {
        program: OsString,
        #[source]
        source: std::io::Error,
    },
    #[error("the image helper broke off: {0}")]
    Broken(String),
    #[error("{0}")]
    Job(String),
}

/// The user's subordinate ids, as /etc/subuid and /etc/subgid grant them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SubIds {
    uid: (u32, u32),
    gid: (u32, u32),
}

impl SubIds {
    /// The first range of each file; None when the user has none or the tools to use them are missing.
    pub(crate) fn of_current_user() -> Option<Self> {
        let uid = Uid::current();
        let name = user_name(&std::fs::read_to_string("/etc/passwd").ok()?, uid.as_raw());
        let range = |file: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            range_of(&text, name.as_deref(), uid.as_raw())
        };
        which::which("newuidmap").ok()?;
        which::which("newgidmap").ok()?;
        Some(Self { uid: range("/etc/subuid")?, gid: range("/etc/subgid")? })
    }
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        (id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// First `name:start:count` line for the user (by name or number) that is large enough to be of use.
fn range_of(file: &str, name: Option<&str>, uid: u32) -> Option<(u32, u32)> {
    let number = uid.to_string();
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if Some(owner) != name && owner != number {
            return None;
        }
        let start = fields.next()?.trim().parse().ok()?;
        let count = fields.next()?.trim().parse().ok()?;
        (count > 0).then_some((start, count))
    })
}

/// Runs one job in a helper process. Killed with it when the future is dropped.
pub(crate) async fn run(helper: &[OsString], ids: Option<&SubIds>, job: &Job) -> Result<Report, HelperError> {
    let (program, args) =
        helper.split_first().ok_or_else(|| HelperError::Broken("no helper command is configured".to_owned()))?;
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| HelperError::Start { program: program.clone(), source })?;
    let (Some(mut stdin), Some(stdout), Some(mut stderr), Some(pid)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take(), child.id())
    else {
        return Err(HelperError::Broken("its pipes are missing".to_owned()));
    };
    let dialogue = async {
        let mut lines = tokio::io::BufReader::new(stdout).lines();
        if lines.next_line().await?.as_deref() != Some("ready") {
            return Ok(None);
        }
        if !Uid::effective().is_root() {
            map_ids(pid, ids).await?;
        }
        let mut line = serde_json::to_string(job)?;
        line.push('\n');
        stdin.write_all(line.as_bytes()).await?;
        stdin.flush().await?;
        lines.next_line().await
    };
    let mut words = String::new();
    let listen = async {
        use tokio::io::AsyncReadExt;
        // Bounded: a helper says a line or two.
        let _ = (&mut stderr).take(16 << 10).read_to_string(&mut words).await;
    };
    let (answer, ()) = tokio::join!(dialogue, listen);
    let status = child.wait().await;
    let broken = |what: String| HelperError::Broken(format!("{what} {}", words.trim()).trim().to_owned());
    match answer {
        Ok(Some(line)) => match serde_json::from_str(&line) {
            Ok(Outcome::Done(report)) => Ok(report),
            Ok(Outcome::Failed(text)) => Err(HelperError::Job(text)),
            Err(e) => Err(broken(format!("bad answer ({e})"))),
        },
        Ok(None) => Err(broken(match status {
            Ok(status) => format!("{status}"),
            Err(e) => e.to_string(),
        })),
        Err(e) => Err(broken(e.to_string())),
    }
}

/// Maps container ids into the helper's namespace: 0 is the user, 1… are the subordinate ids, the same
/// map that Apptainer's --fakeroot makes, so that pods see the owners that were unpacked.
async fn map_ids(pid: u32, ids: Option<&SubIds>) -> std::io::Result<()> {
    let (uid, gid) = (Uid::current().as_raw(), nix::unistd::Gid::current().as_raw());
    let Some(ids) = ids else {
        tokio::fs::write(format!("/proc/{pid}/uid_map"), format!("0 {uid} 1")).await?;
        tokio::fs::write(format!("/proc/{pid}/setgroups"), "deny").await?;
        return tokio::fs::write(format!("/proc/{pid}/gid_map"), format!("0 {gid} 1")).await;
    };
    map_by_tool("newuidmap", pid, uid, ids.uid).await?;
    map_by_tool("newgidmap", pid, gid, ids.gid).await
}

async fn map_by_tool(tool: &str, pid: u32, own: u32, range: (u32, u32)) -> std::io::Result<()> {
    let numbers = [pid, 0, own, 1, 1, range.0, range.1];
    let output = tokio::process::Command::new(tool)
        .args(numbers.iter().map(ToString::to_string))
        .stdin(Stdio::null())
        .output()
        .await?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(std::io::Error::other(format!("{tool}: {}", text.trim())))
}

/// The helper command of a program that calls [`main`] when its only argument is `image-helper`.
#[must_use]
pub fn command_of(program: &OsStr) -> Vec<OsString> {
    vec![program.to_owned(), OsString::from("image-helper")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ranges_are_found_by_name_or_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("alice"));
        let subuid = "bob:200000:65536\nalice:100000:65536\nalice:900000:10\n";
        assert_eq!(range_of(subuid, Some("alice"), 1000), Some((100_000, 65536)));
        assert_eq!(range_of("1000:300000:65536\n", None, 1000), Some((300_000, 65536)));
        assert_eq!(range_of("bob:1:2\nalice:x:y\n", Some("alice"), 1000), None);
    }
}
