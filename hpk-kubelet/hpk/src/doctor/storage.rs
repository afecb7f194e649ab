//! What etcd and the pods' folders need of a file system: quick fdatasync(2), locks, room.

use super::Finding;
use crate::home;
use crate::state::place;
use hpk_images::shared_by;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

/// What etcd writes at a time, about: bytes.
const WRITE: usize = 8 << 10;
/// How often it is tried, and until when.
const TRIES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(2);
/// etcd's documentation wants the 99th percentile below this.
const QUICK: Duration = Duration::from_millis(10);
/// Less free than this is told: bytes, and files and folders.
const ROOM: u64 = 2 << 30;
const FILES: u64 = 20_000;

/// All of them.
pub(super) fn home(show: &mut dyn FnMut(Finding)) {
    let Ok(home) = home::find() else { return };
    let Some(folder) = home.root().ancestors().find(|path| path.is_dir()) else { return };
    let base = place::choose(&home, None).ok().flatten();
    let at = base.as_deref().unwrap_or(folder);
    show(disk(at, base.is_none(), delays(at)));
    show(locks(folder, shared_by(folder), held(folder)));
    match nix::sys::statvfs::statvfs(folder) {
        Ok(stat) => {
            // Some file systems count no files.
            let files = (stat.files() > 0).then(|| stat.files_available());
            show(room(stat.blocks_available() * stat.fragment_size(), files));
        }
        Err(error) => show(Finding::warning("room in HPK_HOME", error.to_string(), "see df -h and df -i")),
    }
}

/// Pure. `delays`: of each write, in any order; None: it cannot be tried.
fn disk(at: &Path, in_home: bool, delays: Option<Vec<Duration>>) -> Finding {
    const CHECK: &str = "disk for etcd";
    let Some(mut delays) = delays.filter(|delays| !delays.is_empty()) else {
        return Finding::warning(CHECK, format!("{}: cannot be written", at.display()), "hpk up --etcd-data DIR");
    };
    delays.sort();
    let slow = delays[(delays.len() * 99).div_ceil(100) - 1];
    let found =
        format!("{}: 99 of 100 writes of 8 KiB are on disk within {:.1} ms", at.display(), slow.as_secs_f64() * 1e3);
    if slow <= QUICK {
        Finding::ok(CHECK, found)
    } else if in_home {
        Finding::warning(
            CHECK,
            found,
            "etcd wants 10 ms: hpk up --etcd-data /var/tmp, if this machine's own disk is quicker",
        )
    } else {
        Finding::warning(CHECK, found, "etcd wants 10 ms: hpk up --etcd-data DIR with a folder of a quicker disk")
    }
}

fn delays(folder: &Path) -> Option<Vec<Duration>> {
    let mut file = tempfile(folder)?;
    let (begin, block, mut delays) = (Instant::now(), vec![7_u8; WRITE], Vec::new());
    while delays.len() < TRIES && begin.elapsed() < PATIENCE {
        let one = Instant::now();
        file.write_all(&block).and_then(|()| file.sync_data()).ok()?;
        delays.push(one.elapsed());
    }
    Some(delays)
}

/// A file without a name any more.
fn tempfile(folder: &Path) -> Option<File> {
    let path = folder.join(format!(".doctor-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).ok()?;
    std::fs::remove_file(&path).ok()?;
    Some(file)
}

/// Kinds of locks, and whether each keeps a second holder out on this machine; None: it cannot be tried.
type Held = [(&'static str, Option<bool>); 2];

/// What is told of these locks. Pure.
fn locks(folder: &Path, system: Option<&str>, held: Held) -> Finding {
    const CHECK: &str = "locks in HPK_HOME";
    let without: Vec<&str> = held.iter().filter(|(_, works)| *works != Some(true)).map(|(name, _)| *name).collect();
    if without.is_empty() {
        let also = system
            .map_or_else(String::new, |s| format!("; {s} may hold them on one machine only, a lease does on all"));
        return Finding::ok(CHECK, format!("flock and fcntl hold on this machine{also}"));
    }
    Finding::warning(
        CHECK,
        format!("{}: {} does not lock", folder.display(), without.join(" and ")),
        "hpk up --etcd-data /var/tmp: etcd needs locks; or ask for the file system to be mounted with flock",
    )
}

fn held(folder: &Path) -> Held {
    let path = folder.join(format!(".doctor-lock-{}", std::process::id()));
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path).ok();
    let files = open().zip(open());
    let flock = files.as_ref().and_then(|(one, two)| {
        one.try_lock().ok()?;
        Some(two.try_lock().is_err())
    });
    let fcntl = files.as_ref().and_then(|(one, two)| {
        // Of an open file, not of a process: both are this one's.
        lock(one).ok()?;
        Some(lock(two).is_err())
    });
    let _absent = std::fs::remove_file(&path);
    [("flock", flock), ("fcntl", fcntl)]
}

fn lock(file: &File) -> nix::Result<()> {
    let whole =
        libc::flock { l_type: i16::try_from(libc::F_WRLCK).unwrap_or(1), l_whence: 0, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

/// Pure. `files`: how many more there may be; None: not counted.
fn room(bytes: u64, files: Option<u64>) -> Finding {
    const CHECK: &str = "room in HPK_HOME";
    let more = files.map_or_else(String::new, |n| format!(", {n} more files"));
    let found = format!("{} MiB free{more}", bytes >> 20);
    if bytes >= ROOM && files.is_none_or(|n| n >= FILES) {
        return Finding::ok(CHECK, found);
    }
    Finding::warning(
        CHECK,
        found,
        "free some (hpk image prune), or set HPK_HOME to a file system with more room; see quota -s too",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_slow_disk_is_told_with_what_to_do() {
        let at = Path::new("/h");
        let ms = |n| Duration::from_millis(n);
        let mut delays = vec![ms(2); 99];
        delays.push(ms(500));
        assert_eq!(disk(at, true, Some(delays.clone())).verdict, Verdict::Ok, "one of a hundred");
        delays.push(ms(500));
        let slow = disk(at, true, Some(delays));
        assert!(slow.verdict == Verdict::Warning && slow.found.contains("500.0 ms"), "{slow:?}");
        assert!(slow.remedy.contains("--etcd-data /var/tmp"), "{slow:?}");
        assert_eq!(disk(at, false, Some(vec![])).verdict, Verdict::Warning);
    }

    #[test]
    fn locks_and_delays_of_a_real_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(held(folder.path()), [("flock", Some(true)), ("fcntl", Some(true))]);
        assert!(!delays(folder.path()).unwrap().is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing stays behind");
        let none = locks(folder.path(), Some("Lustre"), [("flock", None), ("fcntl", Some(true))]);
        assert!(none.verdict == Verdict::Warning && none.found.contains("flock does not lock"), "{none:?}");
    }

    #[test]
    fn little_room_is_told() {
        assert_eq!(room(ROOM, None).verdict, Verdict::Ok);
        assert_eq!(room(ROOM, Some(FILES)).verdict, Verdict::Ok);
        assert_eq!(room(ROOM - 1, None).verdict, Verdict::Warning);
        assert_eq!(room(ROOM, Some(5)).verdict, Verdict::Warning);
    }
}
