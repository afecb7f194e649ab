//! One control plane of one HPK_HOME at a time, whichever login node it is on.
//!
//! Locks of network file systems may hold on one machine only, so there is a lease beside the lock: a record in
//! `HPK_HOME/run/lease.json` that names its holder and changes with each beat. A holder on another machine that has not
//! changed it for [`STALE`] is gone. A holder that could not change it for [`LOST`] stops everything, before that time is
//! over for anybody else. [`judge`] and [`Watch`] decide, purely; [`Lease`] reads and writes.

use anyhow::{Context, Result, bail, ensure};
use hpk_layout::Home;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between two beats.
pub(crate) const BEAT: Duration = Duration::from_secs(10);
/// Without a beat for this long, the holder no longer counts on having it.
pub(crate) const LOST: Duration = Duration::from_secs(30);
/// Without a beat for this long, others take it. Longer than [`LOST`] by the time in which everything is killed.
pub(crate) const STALE: Duration = Duration::from_secs(60);
/// The record's size, bytes: it is overwritten in place, which takes no room on a full disk.
const SIZE: usize = 512;

/// Who may run the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    pub host: String,
    /// The kernel's, anew at each boot.
    boot: String,
    pub pid: u32,
    /// Anew for each holder.
    token: String,
    /// Grows with each beat.
    beat: u64,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    host: String,
    boot: String,
}

impl Me {
    /// On this machine.
    pub(crate) fn new(host: &str) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { host: host.to_owned(), boot: boot.trim().to_owned() }
    }
}

/// Whether a lease may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may.
    Free,
    /// Its holder lives.
    Held,
    /// Only time can tell.
    Unknown,
}

/// What a claim says by itself. `lives`: whether a process of this machine is a supervisor.
pub(crate) fn judge(claim: &Claim, me: &Me, lives: impl Fn(u32) -> bool) -> Verdict {
    if claim.host != me.host {
        Verdict::Unknown
    } else if claim.boot == me.boot && lives(claim.pid) {
        Verdict::Held
    } else {
        Verdict::Free
    }
}

/// What time tells of a claim on another machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    seen: Option<(String, u64, Duration)>,
}

impl Watch {
    /// `now`: any clock that does not go back.
    pub(crate) fn look(&mut self, claim: &Claim, now: Duration) -> Verdict {
        match &self.seen {
            Some((token, beat, _)) if *token != claim.token || *beat != claim.beat => Verdict::Held,
            Some((_, _, since)) if now.saturating_sub(*since) >= STALE => Verdict::Free,
            Some(_) => Verdict::Unknown,
            None => {
                self.seen = Some((claim.token.clone(), claim.beat, now));
                Verdict::Unknown
            }
        }
    }
}

/// Why a lease is held no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Another login node has it.
    Taken(String),
    /// It could not be renewed.
    Silent(String),
}

/// Beats until that no longer works.
pub(crate) async fn hold(lease: Shared) -> Lost {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(BEAT).await;
        let (begun, shared) = (Instant::now(), lease.clone());
        // A file system that does not answer holds a thread, and no more.
        let beat = tokio::task::spawn_blocking(move || beat(&shared));
        let error = match tokio::time::timeout_at(last + LOST, beat).await {
            Ok(Ok(Ok(()))) => {
                last = begun;
                continue;
            }
            Ok(Ok(Err(BeatError::Taken(host)))) => return Lost::Taken(host),
            Ok(Ok(Err(BeatError::Io(error)))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_late) => "the file system does not answer".to_owned(),
        };
        if last.elapsed() + BEAT > LOST {
            return Lost::Silent(error);
        }
    }
}

/// Waits until the lease answers again. False: it is another's now.
pub(crate) async fn regain(lease: Shared) -> bool {
    loop {
        tokio::time::sleep(BEAT).await;
        let shared = lease.clone();
        match tokio::task::spawn_blocking(move || beat(&shared)).await {
            Ok(Ok(())) => return true,
            Ok(Err(BeatError::Taken(_))) => return false,
            Ok(Err(BeatError::Io(_))) | Err(_) => {}
        }
    }
}

/// The lease, as the task that beats and the one that gives it back have it.
pub(crate) type Shared = Arc<Mutex<Lease>>;

fn beat(lease: &Shared) -> Result<(), BeatError> {
    lease.lock().unwrap_or_else(PoisonError::into_inner).beat()
}

/// The lease, held.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    claim: Claim,
}

/// Why a beat failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeatError {
    /// Another control plane has it.
    #[error("the control plane of this HPK_HOME has been started on {0}")]
    Taken(String),
    /// For now.
    #[error("the lease cannot be renewed: {0}")]
    Io(#[from] std::io::Error),
}

/// What the file says; None: there is no claim.
///
/// # Errors
/// The file system's.
pub(crate) fn read(home: &Home) -> Result<Option<Claim>> {
    let path = home.lease();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let claim = serde_json::from_str(text.trim());
    claim.map(Some).with_context(|| {
        format!("{} is damaged: remove it when you are sure that no other login node runs this cluster", path.display())
    })
}

/// The claim that may be replaced, as `hpk up` tells the supervisor that it starts.
pub(crate) fn mark(claim: &Claim) -> String {
    format!("{}:{}", claim.token, claim.beat)
}

/// The claim in the way, if it may be replaced. `judged`: the [`mark`] of one that time has shown to be free.
///
/// # Errors
/// Its holder lives, or may live.
pub(crate) fn replaceable(home: &Home, me: &Me, judged: Option<&str>) -> Result<Option<Claim>> {
    let Some(claim) = read(home)? else { return Ok(None) };
    let verdict = judge(&claim, me, |pid| super::control::is_supervisor(pid, home.root()));
    let free = verdict == Verdict::Free || judged == Some(mark(&claim).as_str());
    ensure!(free, "the control plane runs on {} (process {})", claim.host, claim.pid);
    Ok(Some(claim))
}

impl Lease {
    /// Takes the lease in place of `former`, which was judged to be free.
    ///
    /// # Errors
    /// Somebody else was quicker, or the file system's.
    pub(crate) fn take(home: &Home, me: &Me, token: String, former: Option<&Claim>) -> Result<Self> {
        let path = home.lease();
        let claim = Claim { host: me.host.clone(), boot: me.boot.clone(), pid: std::process::id(), token, beat: 0 };
        // A link is made or is not, on every file system; a lock may hold on one machine only.
        let mine = path.with_extension(&claim.token);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&mine);
        file.and_then(|file| write(&file, &claim)).with_context(|| mine.display().to_string())?;
        let taken = put(home, &path, &mine, former);
        let _linked = fs::remove_file(&mine);
        taken?;
        Ok(Self { path, claim })
    }

    /// Says that the holder lives.
    ///
    /// # Errors
    /// [`BeatError`].
    pub(crate) fn beat(&mut self) -> Result<(), BeatError> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        let mut text = vec![0; SIZE];
        let read = file.read_at(&mut text, 0)?;
        let found: Claim = serde_json::from_slice(text[..read].trim_ascii()).map_err(std::io::Error::from)?;
        if found.token != self.claim.token {
            return Err(BeatError::Taken(found.host));
        }
        self.claim.beat += 1;
        Ok(write(&file, &self.claim)?)
    }

    /// Gives it back: the next one need not wait.
    pub(crate) fn release(&self, home: &Home) {
        if read(home).ok().flatten().is_some_and(|found| found.token == self.claim.token) {
            let _left = fs::remove_file(&self.path);
        }
    }
}

fn put(home: &Home, path: &Path, mine: &Path, former: Option<&Claim>) -> Result<()> {
    if let Some(former) = former {
        // Whatever is there now goes aside; if it is not what was judged, it comes back.
        let aside = mine.with_added_extension("former");
        fs::rename(path, &aside).with_context(|| path.display().to_string())?;
        let moved: Option<Claim> =
            fs::read(&aside).ok().and_then(|text| serde_json::from_slice(text.trim_ascii()).ok());
        let same = moved.is_some_and(|moved| moved.token == former.token && moved.beat == former.beat);
        if !same {
            let back = fs::hard_link(&aside, path);
            let _there = fs::remove_file(&aside);
            back.with_context(|| path.display().to_string())?;
            bail!("another login node starts this cluster at the same time");
        }
        fs::remove_file(&aside).with_context(|| aside.display().to_string())?;
    }
    match fs::hard_link(mine, path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let host = read(home)?.map(|claim| claim.host).unwrap_or_default();
            bail!("{host} starts this cluster at the same time")
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn write(file: &File, claim: &Claim) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(claim)?;
    if text.len() > SIZE {
        return Err(std::io::Error::other("the name of this host is too long for a lease"));
    }
    text.resize(SIZE, b' ');
    file.write_all_at(&text, 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(host: &str, boot: &str) -> Me {
        Me { host: host.into(), boot: boot.into() }
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("h"));
        crate::home::create(&home).unwrap();
        (dir, home)
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_claim_of_this_machine_is_judged_by_its_process() {
        let claim = Claim { host: "a".into(), boot: "1".into(), pid: 7, token: "t".into(), beat: 3 };
        assert_eq!(judge(&claim, &me("a", "1"), |pid| pid == 7), Verdict::Held);
        assert_eq!(judge(&claim, &me("a", "1"), |_| false), Verdict::Free);
        assert_eq!(judge(&claim, &me("a", "2"), |_| true), Verdict::Free, "the machine was booted again");
        assert_eq!(judge(&claim, &me("b", "1"), |_| true), Verdict::Unknown);
    }

    #[test]
    fn a_claim_of_another_machine_is_judged_by_its_beats() {
        let mut claim = Claim { host: "a".into(), boot: "1".into(), pid: 7, token: "t".into(), beat: 3 };
        let mut watch = Watch::default();
        assert_eq!(watch.look(&claim, s(100)), Verdict::Unknown);
        assert_eq!(watch.look(&claim, s(159)), Verdict::Unknown);
        assert_eq!(watch.clone().look(&claim, s(160)), Verdict::Free);
        claim.beat = 4;
        assert_eq!(watch.look(&claim, s(160)), Verdict::Held);
        assert!(LOST + crate::supervise::strays::GRACE < STALE, "the holder stops before another one starts");
    }

    #[test]
    fn a_holder_that_was_replaced_knows_it_at_its_next_beat() {
        let (_dir, home) = home();
        assert_eq!(read(&home).unwrap(), None);
        let mut first = Lease::take(&home, &me("a", "1"), "one".into(), None).unwrap();
        first.beat().unwrap();
        let held = read(&home).unwrap().unwrap();
        assert_eq!((held.host.as_str(), held.beat), ("a", 1));
        let busy = Lease::take(&home, &me("b", "1"), "two".into(), None).unwrap_err();
        assert_eq!(busy.to_string(), "a starts this cluster at the same time");

        // It was judged too early: the holder goes on.
        first.beat().unwrap();
        assert!(Lease::take(&home, &me("b", "1"), "two".into(), Some(&held)).is_err());
        first.beat().unwrap();

        let held = read(&home).unwrap().unwrap();
        let mut second = Lease::take(&home, &me("b", "1"), "two".into(), Some(&held)).unwrap();
        assert!(matches!(first.beat(), Err(BeatError::Taken(host)) if host == "b"));
        first.release(&home);
        second.beat().unwrap();
        second.release(&home);
        assert_eq!(read(&home).unwrap(), None);
        assert_eq!(
            fs::read_dir(home.run())
                .unwrap()
                .filter(|e| { e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().starts_with("lease")) })
                .count(),
            0,
            "nothing stays behind"
        );
    }
}
