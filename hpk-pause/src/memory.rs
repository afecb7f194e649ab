//! The job's memory: waits for the kernel's word on it, and looks at who is there. What follows is [`hpk_core::MemoryRule`]'s.

use hpk_api::plan::Resources;
use hpk_core::{ContainerIndex, MemoryFinding, MemoryRule, MemoryUse, ProcessUse};
use hpk_sys::cgroup::JobMemory;
use hpk_sys::launch::Shown;
use hpk_sys::procfs;
use hpk_sys::signals::MountNs;
use std::collections::HashMap;
use std::fs::Permissions;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Between two looks. A pod under pressure is told of it thousands of times a second.
const REST: Duration = Duration::from_millis(50);

/// The containers that run, by the mount namespace that their processes are in.
pub(crate) type Members = HashMap<MountNs, ContainerIndex>;

/// Watches the memory of the job.
#[derive(Debug)]
pub(crate) struct Memory {
    job: Option<JobMemory>,
    notifier: Option<AsyncFd<OwnedFd>>,
    rule: MemoryRule,
    begun: Instant,
    rested: Instant,
    findings: Vec<MemoryFinding>,
}

impl Memory {
    /// Finds what there is to be watched.
    #[must_use]
    pub(crate) fn find() -> Self {
        let job = JobMemory::find();
        let notifier = job.as_ref().and_then(|job| job.notifier().ok()).and_then(|fd| {
            // The unsafe successor asks for a promise that `OwnedFd` keeps anyway.
            #[allow(deprecated)]
            AsyncFd::with_interest(fd, Interest::READABLE).ok()
        });
        let seen = job.as_ref().map(counts).unwrap_or_default();
        let limit = job.as_ref().and_then(JobMemory::limit);
        let rule = MemoryRule::new(Duration::ZERO, limit, notifier.is_some(), seen);
        let now = Instant::now();
        Self { job, notifier, rule, begun: now, rested: now, findings: Vec::new() }
    }

    /// The job's limit, bytes.
    #[must_use]
    pub(crate) fn limit(&self) -> Option<u64> {
        self.job.as_ref().and_then(JobMemory::limit)
    }

    /// What a container is to see of its limits; files are made in `folder`. What cannot be made is left out.
    #[must_use]
    pub(crate) fn shown(&self, resources: &Resources, folder: &Path) -> Vec<Shown> {
        let Some(job) = &self.job else { return Vec::new() };
        let limit = |name: &str| resources.limits.get(name).copied().filter(|amount| *amount > 0);
        let view = job.view(limit("memory"), limit("cpu"));
        let target = |path: PathBuf| path.to_string_lossy().into_owned();
        let folders = view.folders.into_iter().map(|(source, place)| Shown { source, target: target(place) });
        let made = std::fs::create_dir_all(folder).is_ok();
        let files = view.files.into_iter().enumerate().filter(|_| made).filter_map(|(number, (place, text))| {
            let source = folder.join(number.to_string());
            std::fs::write(&source, text).ok()?;
            // Read by every user of the container, whatever the umask.
            std::fs::set_permissions(&source, Permissions::from_mode(0o444)).ok()?;
            Some(Shown { source, target: target(place) })
        });
        folders.chain(files).collect()
    }

    /// Waits until it is time for a look. True: the kernel has said something.
    pub(crate) async fn word(&self) -> bool {
        let due = self.rule.due().map(|due| self.begun + due);
        let told = async {
            let Some(notifier) = &self.notifier else { return pending().await };
            if self.rested > Instant::now() {
                tokio::time::sleep_until(self.rested.into()).await;
            }
            if let Ok(mut guard) = notifier.readable().await {
                let mut words = [0; 4096];
                let _ = nix::unistd::read(notifier.get_ref(), &mut words);
                guard.clear_ready();
            }
        };
        let time = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = told => true,
            () = time => false,
        }
    }

    /// Looks. What was found, since the last time and by the ends in between.
    pub(crate) fn look(&mut self, word: bool, members: &Members) -> Vec<MemoryFinding> {
        self.look_at(word, members, None);
        std::mem::take(&mut self.findings)
    }

    /// What the ends of containers have brought to light.
    pub(crate) fn found(&mut self) -> Vec<MemoryFinding> {
        std::mem::take(&mut self.findings)
    }

    /// The first process of a container has ended; `members` still has it. `killed`: by a SIGKILL that is not the
    /// supervisor's. True: the kernel did it for memory, or took another process of it just now, where that ends all of
    /// a container (`whole`).
    pub(crate) fn ended(&mut self, container: ContainerIndex, killed: bool, whole: bool, members: &Members) -> bool {
        let Some(kills) = self.job.as_ref().and_then(JobMemory::kills) else { return false };
        let mut oom = false;
        if self.rule.fresh(kills) {
            if killed {
                self.rule.explained(container, kills);
                return true;
            }
            if whole {
                self.look_at(false, members, Some(container));
                let its = MemoryFinding::Killed(Some(container));
                oom = self.findings.contains(&its);
                self.findings.retain(|finding| *finding != its);
            }
        }
        self.rule.forget(container);
        oom
    }

    fn look_at(&mut self, word: bool, members: &Members, ended: Option<ContainerIndex>) {
        let Some(job) = &self.job else { return };
        let begun = Instant::now();
        let seen = procfs::seen().into_iter();
        let processes: Vec<ProcessUse> = seen
            .filter_map(|process| {
                Some(ProcessUse {
                    container: *members.get(&process.ns?)?,
                    pid: process.pid.as_raw(),
                    started: process.started,
                    pages: process.pages,
                    gone: process.gone,
                    child_faults: process.child_faults,
                })
            })
            .collect();
        let mut containers: Vec<ContainerIndex> = members.values().copied().collect();
        containers.sort_unstable();
        let now = self.begun.elapsed();
        self.findings.extend(self.rule.look(now, word, counts(job), &processes, &containers, ended));
        // A node with thousands of processes must not keep a core busy with this.
        self.rested = Instant::now() + REST.max(begun.elapsed() * 20);
    }
}

fn counts(job: &JobMemory) -> MemoryUse {
    let counts = job.counts();
    MemoryUse { kills: counts.kills, hits: counts.hits, major_faults: counts.major_faults, used: counts.used }
}
