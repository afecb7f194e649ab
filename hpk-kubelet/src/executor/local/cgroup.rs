//! Limits of runs, where the user has cgroups to keep them with.
//!
//! Two ways, version 2 only: systemd's user session makes a scope for each run; or a cgroup above this process is the user's
//! own (delegated), and each run gets one below it. Where there is neither, a pod's limits are not kept, which its owner is
//! told.

use super::needs::Limits;
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What keeps limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// `systemd-run --user --scope`.
    Systemd(PathBuf),
    /// A cgroup of the user's.
    Folder(PathBuf),
    Nobody,
}

impl Cgroups {
    /// Looks what this user has. Starts one command at most.
    #[must_use]
    pub(crate) fn find() -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if let Some(folder) = delegated(Path::new("/sys/fs/cgroup"), &own) {
            return Self::Folder(folder);
        }
        // Without a session it waits for nothing and says so.
        let works = |program: &Path| {
            let words = ["--user", "--scope", "--quiet", "--collect", "-p", "MemoryMax=1G", "true"];
            let mut command = Command::new(program);
            command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        match which::which("systemd-run") {
            Ok(program) if works(&program) => Self::Systemd(program),
            _ => Self::Nobody,
        }
    }

    /// The cgroup of a pod's run, made; None: it has none that we make.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn make(&self, pod: &str, milli_cpu: u64, limits: Limits) -> io::Result<Option<PathBuf>> {
        let Self::Folder(base) = self else { return Ok(None) };
        let folder = base.join(name(pod));
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(mib) = limits.memory_mib {
            fs::write(folder.join("memory.max"), (mib << 20).to_string())?;
        }
        // The controller of CPUs is not always delegated; without it CPUs are shared evenly.
        if let Some(milli) = limits.milli_cpu {
            let _ = fs::write(folder.join("cpu.max"), format!("{} 100000", (milli * 100).max(1000)));
        }
        let _ = fs::write(folder.join("cpu.weight"), weight(milli_cpu).to_string());
        Ok(Some(folder))
    }

    /// What stands before a run's command.
    #[must_use]
    pub(crate) fn prefix(&self, pod: &str, milli_cpu: u64, limits: Limits) -> Vec<String> {
        let Self::Systemd(program) = self else { return Vec::new() };
        let mut words: Vec<String> = vec![program.display().to_string()];
        words.extend(["--user", "--scope", "--quiet", "--collect"].map(str::to_owned));
        words.push(format!("--unit={}", name(pod)));
        let mut property = |text: String| words.extend(["-p".to_owned(), text]);
        property(format!("CPUWeight={}", weight(milli_cpu)));
        if let Some(mib) = limits.memory_mib {
            property(format!("MemoryMax={mib}M"));
        }
        if let Some(milli) = limits.milli_cpu {
            property(format!("CPUQuota={}%", milli.div_ceil(10).max(1)));
        }
        words.push("--".to_owned());
        words
    }
}

fn name(pod: &str) -> String {
    format!("hpk-run-{pod}")
}

/// Kubernetes' shares of version 1 (1024 for a CPU, at least 2) as a weight of version 2, by upstream's formula.
fn weight(milli_cpu: u64) -> u64 {
    let shares = (milli_cpu * 1024 / 1000).clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// The lowest cgroup above, or of, this process below which the user may make others with limits of memory. `cgroups`: the
/// text of /proc/self/cgroup.
fn delegated(mounted: &Path, cgroups: &str) -> Option<PathBuf> {
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let leaf = mounted.join(path.trim_start_matches('/'));
    let has = |folder: &Path, file: &str, word: &str| {
        fs::read_to_string(folder.join(file)).is_ok_and(|text| text.split_ascii_whitespace().any(|w| w == word))
    };
    let ours = |folder: &Path| {
        let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
        writable(folder) && writable(&folder.join("cgroup.procs")) && has(folder, "cgroup.controllers", "memory")
    };
    leaf.ancestors().take_while(|folder| folder.starts_with(mounted)).filter(|folder| ours(folder)).find_map(|folder| {
        // Fails where the cgroup has processes of its own.
        let enabled = has(folder, "cgroup.subtree_control", "memory")
            || fs::write(folder.join("cgroup.subtree_control"), "+memory").is_ok();
        let _ = fs::write(folder.join("cgroup.subtree_control"), "+cpu");
        enabled.then(|| folder.to_owned())
    })
}

/// Whether the kernel has killed processes of the cgroup for its memory.
#[must_use]
pub(crate) fn ran_out(folder: &Path) -> bool {
    let events = fs::read_to_string(folder.join("memory.events")).unwrap_or_default();
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|number| number.trim().parse::<u64>().ok()).is_some_and(|number| number > 0)
}

/// Kills what is in a run's cgroup and removes it.
pub(crate) fn end(folder: &Path) {
    let _ = fs::write(folder.join("cgroup.kill"), "1");
    for _ in 0..50 {
        match fs::remove_dir(folder) {
            // The killed are still leaving it.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(cgroup = %folder.display(), %error, "the run's cgroup is not removed");
                return;
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain files in place of the kernel's.
    fn cgroup(folder: &Path, controllers: &str, enabled: &str) {
        fs::create_dir_all(folder).unwrap();
        for (file, text) in
            [("cgroup.procs", ""), ("cgroup.controllers", controllers), ("cgroup.subtree_control", enabled)]
        {
            fs::write(folder.join(file), text).unwrap();
        }
    }

    #[test]
    fn the_lowest_that_can_have_others_with_memory() {
        let root = tempfile::tempdir().unwrap();
        let folder = |path: &str| root.path().join(path);
        cgroup(&folder("user"), "cpu memory pids", "cpu memory");
        cgroup(&folder("user/shell"), "cpu pids", "");
        let of = |text: &str| delegated(root.path(), text);
        assert_eq!(of("4:memory:/x\n0::/user/shell\n"), Some(folder("user")));
        assert_eq!(of("4:memory:/x\n"), None, "version 1");
        assert_eq!(of("0::/other\n"), None);
    }

    #[test]
    fn limits_are_written_and_said() {
        let base = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::Folder(base.path().to_owned());
        let limits = Limits { memory_mib: Some(100), milli_cpu: Some(1500) };
        let folder = cgroups.make("u", 1000, limits).unwrap().unwrap();
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        assert_eq!(
            (read("memory.max"), read("cpu.max"), read("cpu.weight")),
            ("104857600".into(), "150000 100000".into(), "39".into())
        );
        assert!(!ran_out(&folder));
        fs::write(folder.join("memory.events"), "low 0\noom 1\noom_kill 1\n").unwrap();
        assert!(ran_out(&folder));
        let words = Cgroups::Systemd("/bin/systemd-run".into()).prefix("u", 0, limits).join(" ");
        let want = "/bin/systemd-run --user --scope --quiet --collect --unit=hpk-run-u -p CPUWeight=1 -p MemoryMax=100M -p CPUQuota=150% --";
        assert_eq!(words, want);
        assert_eq!(Cgroups::Nobody.make("u", 0, limits).unwrap(), None);
    }
}
