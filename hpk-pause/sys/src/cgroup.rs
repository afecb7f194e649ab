//! The memory of the job: what its cgroup counts, and a descriptor that tells when there is something to count.
//!
//! Reads the job's cgroup only; what follows from the numbers is the core's to say. An ordinary user has these ways:
//!
//! | | OOM kills | the limit was reached | told by |
//! |---|---|---|---|
//! | v2 | `memory.events` `oom_kill` | `memory.events` `max` | inotify on `memory.events` |
//! | v1 | `memory.oom_control` `oom_kill` | `memory.failcnt` | an eventfd by `cgroup.event_control`, which newer kernels keep for root |

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::{File, OpenOptions, read_to_string};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A larger limit is none: v1 tells the largest number of pages.
const NO_LIMIT: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The memory cgroup of this process, and the one above it that bounds the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobMemory {
    version: Version,
    /// Where the controller is mounted.
    root: PathBuf,
    /// Version 1: where the controller of CPUs is mounted, and the cgroup of this process in it.
    cpus: Option<(PathBuf, PathBuf)>,
    /// Where kills are counted.
    own: PathBuf,
    /// The one with the lowest limit, and that limit.
    bound: Option<(PathBuf, u64)>,
}

/// What the kernel has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryCounts {
    /// Processes that the OOM killer has ended.
    pub kills: u64,
    /// How often the limit was reached.
    pub hits: u64,
    /// Pages that had to come from a disk.
    pub major_faults: u64,
    /// Bytes in use that are not simply dropped when they are needed.
    pub used: u64,
}

/// See [`JobMemory::view`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Folder, and where it is to be seen.
    pub folders: Vec<(PathBuf, PathBuf)>,
    /// Where a file is to be seen, and what is in it.
    pub files: Vec<(PathBuf, String)>,
}

impl JobMemory {
    /// Finds it. None where the kernel or the site shows none.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::below(Path::new("/sys/fs/cgroup"), &read_to_string("/proc/self/cgroup").ok()?)
    }

    /// `cgroups`: the text of /proc/self/cgroup.
    fn below(mounted: &Path, cgroups: &str) -> Option<Self> {
        let cpus = cgroups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let root = controllers.split(',').any(|name| name == "cpu").then(|| mounted.join(controllers))?;
            let leaf = root.join(path.trim_start_matches('/'));
            leaf.is_dir().then_some((root, leaf))
        });
        let found = cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            if controllers.split(',').any(|name| name == "memory") {
                Self::at(Version::One, &mounted.join("memory"), path)
            } else if controllers.is_empty() {
                let roots = [mounted.to_owned(), mounted.join("unified")];
                roots.iter().find_map(|root| Self::at(Version::Two, root, path))
            } else {
                None
            }
        })?;
        Some(Self { cpus, ..found })
    }

    fn at(version: Version, root: &Path, path: &str) -> Option<Self> {
        let leaf = root.join(path.trim_start_matches('/'));
        let folders: Vec<PathBuf> =
            leaf.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect();
        let own = folders.iter().find(|folder| kills(version, folder).is_some())?.clone();
        let file = if version == Version::One { "memory.limit_in_bytes" } else { "memory.max" };
        let limits = folders.into_iter().filter_map(|folder| {
            let limit = read_to_string(folder.join(file)).ok()?.trim().parse().ok()?;
            (limit < NO_LIMIT).then_some((folder, limit))
        });
        let bound = limits.min_by_key(|(_, limit)| *limit);
        Some(Self { version, root: root.to_owned(), cpus: None, own, bound })
    }

    /// The limit of the job, bytes.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.bound.as_ref().map(|(_, limit)| *limit)
    }

    /// Processes that the OOM killer has ended; None when the file cannot be read any more.
    #[must_use]
    pub fn kills(&self) -> Option<u64> {
        kills(self.version, &self.own)
    }

    /// All counts; what cannot be read is 0.
    #[must_use]
    pub fn counts(&self) -> MemoryCounts {
        let (bound, _) = self.bound.as_ref().map_or((&self.own, 0), |(folder, limit)| (folder, *limit));
        let number = |file: &str| read_to_string(bound.join(file)).ok()?.trim().parse::<u64>().ok();
        let stat = read_to_string(bound.join("memory.stat")).unwrap_or_default();
        let (hits, usage, faults, dropped) = match self.version {
            Version::One => (
                number("memory.failcnt"),
                number("memory.usage_in_bytes"),
                field(&stat, "total_pgmajfault"),
                field(&stat, "total_inactive_file"),
            ),
            Version::Two => (
                read_to_string(bound.join("memory.events")).ok().and_then(|events| field(&events, "max")),
                number("memory.current"),
                field(&stat, "pgmajfault"),
                field(&stat, "inactive_file"),
            ),
        };
        MemoryCounts {
            kills: self.kills().unwrap_or(0),
            hits: hits.unwrap_or(0),
            major_faults: faults.unwrap_or(0),
            used: usage.unwrap_or(0).saturating_sub(dropped.unwrap_or(0)),
        }
    }

    /// What a container with these limits is to see at the places where programs look for theirs: its job's cgroup, where
    /// a cgroup namespace would show it, and over it files that hold the container's limits, none of which is more than
    /// the job's. (Folder and place; place and content.)
    #[must_use]
    pub fn view(&self, memory: Option<u64>, milli_cpus: Option<u64>) -> View {
        const PERIOD_US: u64 = 100_000;
        let memory = [memory, self.limit()].into_iter().flatten().min();
        let quota = milli_cpus.map(|milli| milli.saturating_mul(PERIOD_US / 1000));
        let mut view = View { folders: vec![(self.own.clone(), self.root.clone())], files: Vec::new() };
        let mut put =
            |folder: &Path, file: &str, text: String| view.files.push((folder.join(file), format!("{text}\n")));
        match self.version {
            Version::One => {
                memory.into_iter().for_each(|bytes| put(&self.root, "memory.limit_in_bytes", bytes.to_string()));
                if let (Some((root, leaf)), Some(quota)) = (&self.cpus, quota) {
                    put(root, "cpu.cfs_quota_us", quota.to_string());
                    put(root, "cpu.cfs_period_us", PERIOD_US.to_string());
                    view.folders.push((leaf.clone(), root.clone()));
                }
            }
            Version::Two => {
                memory.into_iter().for_each(|bytes| put(&self.root, "memory.max", bytes.to_string()));
                quota.into_iter().for_each(|quota| put(&self.root, "cpu.max", format!("{quota} {PERIOD_US}")));
            }
        }
        view.folders.retain(|(leaf, root)| leaf != root);
        view
    }

    /// A descriptor that becomes readable at an OOM kill, and when the kernel has trouble to keep below the limit; any
    /// number of bytes can be read from it. It does not block.
    ///
    /// # Errors
    /// The kernel lets only root be told (cgroup v1 of newer kernels), or /sys cannot be written to.
    pub fn notifier(&self) -> Result<OwnedFd, Errno> {
        match self.version {
            Version::One => {
                let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
                register(&event, &self.own, "memory.oom_control", "")?;
                if let Some((bound, _)) = &self.bound {
                    // Where page cache is dropped with ease the pressure is low, and nobody is told.
                    register(&event, bound, "memory.pressure_level", " medium")?;
                }
                Ok(event.into())
            }
            Version::Two => {
                let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
                for folder in [Some(&self.own), self.bound.as_ref().map(|(folder, _)| folder)].into_iter().flatten() {
                    watch.add_watch(&folder.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
                }
                Ok(watch.into())
            }
        }
    }
}

/// cgroup-v1/memory.txt: `<event_fd> <fd of the file> <argument>`.
fn register(event: &EventFd, folder: &Path, file: &str, argument: &str) -> Result<(), Errno> {
    let errno = |e: std::io::Error| Errno::from_raw(e.raw_os_error().unwrap_or(0));
    let about = File::open(folder.join(file)).map_err(errno)?;
    let mut control = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_CLOEXEC.bits())
        .open(folder.join("cgroup.event_control"))
        .map_err(errno)?;
    let line = format!("{} {}{argument}", event.as_fd().as_raw_fd(), about.as_raw_fd());
    control.write_all(line.as_bytes()).map_err(errno)
}

fn kills(version: Version, folder: &Path) -> Option<u64> {
    let file = if version == Version::One { "memory.oom_control" } else { "memory.events" };
    field(&read_to_string(folder.join(file)).ok()?, "oom_kill")
}

/// The number of a line `name N`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        }
        dir
    }

    #[test]
    fn version_one_counts_in_its_own_group_and_is_bounded_by_the_job() {
        let dir = tree(&[
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/slurm/job_7/memory.limit_in_bytes", "67108864\n"),
            ("memory/slurm/job_7/memory.failcnt", "12\n"),
            ("memory/slurm/job_7/memory.usage_in_bytes", "60000000\n"),
            ("memory/slurm/job_7/memory.stat", "pgmajfault 1\ntotal_pgmajfault 90\ntotal_inactive_file 10000000\n"),
            ("memory/slurm/job_7/task_0/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
            ("memory/slurm/job_7/task_0/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ]);
        let memory =
            JobMemory::below(dir.path(), "5:memory:/slurm/job_7/task_0\n1:cpu,cpuacct:/\n0::/\n").expect("a cgroup");
        assert_eq!(memory.limit(), Some(64 << 20));
        let at = |path: &str| dir.path().join(path);
        let view = memory.view(Some(32 << 20), Some(1500));
        assert_eq!(view.folders, [(at("memory/slurm/job_7/task_0"), at("memory"))], "that of CPUs is the root's");
        let files = [
            (at("memory/memory.limit_in_bytes"), "33554432\n".to_owned()),
            (at("cpu,cpuacct/cpu.cfs_quota_us"), "150000\n".to_owned()),
            (at("cpu,cpuacct/cpu.cfs_period_us"), "100000\n".to_owned()),
        ];
        assert_eq!(view.files, files);
        let only = (at("memory/memory.limit_in_bytes"), "67108864\n".to_owned());
        assert_eq!(memory.view(None, None).files, std::slice::from_ref(&only), "the job's");
        assert_eq!(memory.view(Some(1 << 40), None).files, [only], "never more than the job's");
        assert_eq!(memory.counts(), MemoryCounts { kills: 3, hits: 12, major_faults: 90, used: 50_000_000 });
    }

    #[test]
    fn version_two_counts_events() {
        let dir = tree(&[
            ("job_7/memory.max", "1048576\n"),
            ("job_7/memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("job_7/memory.current", "1000\n"),
            ("job_7/memory.stat", "inactive_file 400\npgmajfault 5\n"),
            ("job_7/task_0/memory.max", "max\n"),
            ("job_7/task_0/memory.events", "max 0\noom_kill 1\n"),
        ]);
        let memory = JobMemory::below(dir.path(), "0::/job_7/task_0\n").expect("a cgroup");
        assert_eq!(memory.limit(), Some(1 << 20));
        let view = memory.view(Some(512), Some(250));
        assert_eq!(view.folders, [(dir.path().join("job_7/task_0"), dir.path().to_owned())]);
        let at = |file| dir.path().join(file);
        let files = [(at("memory.max"), "512\n".to_owned()), (at("cpu.max"), "25000 100000\n".to_owned())];
        assert_eq!(view.files, files);
        assert_eq!(memory.counts(), MemoryCounts { kills: 1, hits: 7, major_faults: 5, used: 600 });
        let notifier = memory.notifier().expect("anybody may watch a file");
        let mut bytes = [0; 256];
        assert_eq!(nix::unistd::read(&notifier, &mut bytes), Err(Errno::EAGAIN));
        std::fs::write(dir.path().join("job_7/memory.events"), "oom_kill 2\n").expect("a file");
        assert!(nix::unistd::read(&notifier, &mut bytes).is_ok());
    }

    #[test]
    fn where_nothing_counts_there_is_none() {
        let dir = tree(&[("memory/memory.limit_in_bytes", "9223372036854771712\n")]);
        assert_eq!(JobMemory::below(dir.path(), "5:memory:/slurm/job_7\n"), None);
        assert_eq!(JobMemory::below(dir.path(), ""), None);
        let dir = tree(&[("memory/memory.oom_control", "oom_kill 0\n")]);
        let memory = JobMemory::below(dir.path(), "5:memory:/not/shown\n").expect("the root's");
        assert_eq!(memory.limit(), None);
    }
}
