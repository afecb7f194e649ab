//! The helper process that unpacks and removes images inside a user namespace.
//!
//! ```text
//! store                                        helper (single-threaded, stdin is a socket, stdout a pipe)
//!   spawn                              ───▶
//!                                      ◀───    "ready\n"        after unshare(NEWUSER), when not root
//!   newuidmap, newgidmap (or one id)
//!   open files and a Job               ───▶    chroot, unpack | remove folder
//!                                      ◀───    one JSON line: Outcome
//! ```
//! The helper is a program that calls [`main`] before it starts any thread: a process with threads may not
//! make a user namespace for itself. hpk-kubelet does so for its hidden command `image-helper`. It opens no file that an
//! image's name leads to: it gets them open.

use crate::measure::{Facts, measure};
use crate::mksquashfs::Mksquashfs;
use crate::pass;
use crate::region::Region;
use crate::tree::{Limits, Report};
use crate::unpack;
use hpk_api::subids::{self, SubIds};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use tokio::io::AsyncBufReadExt;

/// Most memory of a helper, bytes: what a hostile image may make it use on the login node.
const MEMORY: u64 = 4 << 30;

/// What the helper shall do.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// Apply layers, bottom first, each with its digest, to an empty folder.
    Layers { rootfs: PathBuf, layers: Vec<(Region, String)>, owners: bool, limits: Limits },
    /// Unpack a SquashFS into an empty folder.
    Squashfs { rootfs: PathBuf, image: Region, owners: bool, limits: Limits },
    /// Pack a folder's files into one.
    Pack { tree: PathBuf, out: PathBuf, packer: Mksquashfs },
    /// Tell of a folder's files.
    Measure { path: PathBuf },
    /// Remove a folder whose files belong to subordinate ids, or a file.
    Remove { path: PathBuf },
}

/// A [`Region`] on its way: the file is the job's file of that number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Place {
    file: usize,
    offset: u64,
    length: u64,
}

/// A [`Job`] on its way.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Layers { rootfs: PathBuf, layers: Vec<(Place, String)>, owners: bool, limits: Limits },
    Squashfs { rootfs: PathBuf, image: Place, owners: bool, limits: Limits },
    Pack { tree: PathBuf, out: PathBuf, packer: Mksquashfs },
    Measure { path: PathBuf },
    Remove { path: PathBuf },
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Outcome {
    Done(Report, Facts),
    Failed(String),
}

impl Job {
    /// The order, and the files that its places count.
    fn order(&self) -> (Order, Vec<Arc<File>>) {
        let mut files: Vec<Arc<File>> = Vec::new();
        let mut place = |region: &Region| {
            let known = files.iter().position(|f| Arc::ptr_eq(f, &region.file));
            let file = known.unwrap_or_else(|| {
                files.push(region.file.clone());
                files.len() - 1
            });
            Place { file, offset: region.offset, length: region.length }
        };
        let order = match self.clone() {
            Self::Layers { rootfs, layers, owners, limits } => {
                let layers = layers.iter().map(|(region, digest)| (place(region), digest.clone())).collect();
                Order::Layers { rootfs, layers, owners, limits }
            }
            Self::Squashfs { rootfs, image, owners, limits } => {
                Order::Squashfs { rootfs, image: place(&image), owners, limits }
            }
            Self::Pack { tree, out, packer } => Order::Pack { tree, out, packer },
            Self::Measure { path } => Order::Measure { path },
            Self::Remove { path } => Order::Remove { path },
        };
        (order, files)
    }
}

/// Runs the helper's side; exit code 0 whenever the outcome could be reported.
pub fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The store reads stderr into its error.
            hpk_api::say!("image helper: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> std::io::Result<()> {
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    limit_memory()?;
    if !Uid::effective().is_root() {
        unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| {
            std::io::Error::other(format!("cannot make a user namespace ({e}); `hpk doctor` says more"))
        })?;
    }
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready")?;
    stdout.flush()?;
    let (files, line) = pass::receive(UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?))?;
    let order: Order = serde_json::from_str(&line)?;
    let files: Vec<_> = files.into_iter().map(Arc::new).collect();
    let outcome = match perform(order, &files) {
        Ok((report, facts)) => Outcome::Done(report, facts),
        Err(text) => Outcome::Failed(text),
    };
    writeln!(stdout, "{}", serde_json::to_string(&outcome)?)?;
    stdout.flush()
}

fn limit_memory() -> std::io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS)?;
    setrlimit(Resource::RLIMIT_AS, soft.min(MEMORY), hard)?;
    Ok(())
}

fn perform(order: Order, files: &[Arc<File>]) -> Result<(Report, Facts), String> {
    let region = |place: Place| {
        let file = files.get(place.file).ok_or("a file of the job is missing")?.clone();
        Ok::<_, String>(Region { file, offset: place.offset, length: place.length })
    };
    match order {
        Order::Layers { rootfs, layers, owners, limits } => {
            let layers = layers
                .into_iter()
                .map(|(place, digest)| Ok((region(place)?, digest)))
                .collect::<Result<Vec<_>, String>>()?;
            enter(&rootfs)?;
            measured("/", unpack::layers(&layers, owners, limits).map_err(|e| e.to_string())?)
        }
        Order::Squashfs { rootfs, image, owners, limits } => {
            let image = region(image)?;
            enter(&rootfs)?;
            measured("/", unpack::squashfs(&image, owners, limits).map_err(|e| e.to_string())?)
        }
        Order::Pack { tree, out, packer } => packer.pack(&tree, &out).map(|()| Default::default()),
        Order::Measure { path } => measured(path, Report::default()),
        Order::Remove { path } => {
            let removed = match std::fs::remove_dir_all(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => std::fs::remove_file(&path),
                other => other,
            };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {e}", path.display())),
                _ => Ok(Default::default()),
            }
        }
    }
}

fn measured(root: impl AsRef<Path>, report: Report) -> Result<(Report, Facts), String> {
    let root = root.as_ref();
    let facts = measure(root).map_err(|e| format!("look through {}: {e}", root.display()))?;
    Ok((report, facts))
}

fn enter(rootfs: &Path) -> Result<(), String> {
    nix::unistd::chroot(rootfs).map_err(|e| format!("chroot {}: {e}", rootfs.display()))?;
    nix::unistd::chdir("/").map_err(|e| format!("chdir: {e}"))
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
    #[error("the image helper ended too early: {0}")]
    Broken(String),
    #[error("{0}")]
    Job(String),
}

/// The user's subordinate ids; None when there are none or the tools to use them are missing.
pub(crate) fn subordinate_ids() -> Option<SubIds> {
    which::which("newuidmap").ok()?;
    which::which("newgidmap").ok()?;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uid = Uid::current().as_raw();
    let name = subids::name_of(&read("/etc/passwd"), uid).or_else(|| std::env::var("USER").ok());
    SubIds::choose(&read("/etc/subuid"), &read("/etc/subgid"), uid, name.as_deref())
}

/// Runs one job in a helper process. Killed with it when the future is dropped.
pub(crate) async fn run(helper: &[OsString], ids: Option<&SubIds>, job: &Job) -> Result<(Report, Facts), HelperError> {
    let (program, args) =
        helper.split_first().ok_or_else(|| HelperError::Broken("no helper command is configured".to_owned()))?;
    let start = |source| HelperError::Start { program: program.clone(), source };
    let (socket, theirs) = UnixStream::pair().map_err(start)?;
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let (Some(stdout), Some(mut stderr), Some(pid)) = (child.stdout.take(), child.stderr.take(), child.id()) else {
        return Err(HelperError::Broken("its pipes are missing".to_owned()));
    };
    let (order, files) = job.order();
    let dialogue = async {
        let mut lines = tokio::io::BufReader::new(stdout).lines();
        if lines.next_line().await?.as_deref() != Some("ready") {
            return Ok(None);
        }
        if !Uid::effective().is_root() {
            map_ids(pid, ids).await?;
        }
        let text = serde_json::to_string(&order)?;
        tokio::task::spawn_blocking(move || pass::send(socket, &files, &text))
            .await
            .map_err(std::io::Error::other)??;
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
            Ok(Outcome::Done(report, facts)) => Ok((report, facts)),
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
    map_by_tool("newuidmap", pid, uid, ids.uids).await?;
    map_by_tool("newgidmap", pid, gid, ids.gids).await
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
