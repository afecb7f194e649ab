//! How much of the node's disk the pod has: measured off the event loop, as often as upstream's eviction manager does.
//!
//! Owns the measuring and its time; what follows from it is [`hpk_core::StorageLimits`]'s. A pod without limits is measured only
//! when somebody asks for its statistics, so that it does not wake up.

use crate::helper::Helper;
use crate::paths::Paths;
use crate::perform::Happening;
use hpk_api::control::{VolumeStats, VolumeUse};
use hpk_api::plan::{SandboxPlan, VolumePlan};
use hpk_core::{ContainerUse, StorageLimits, StorageUse};
use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Time between two measurements (upstream's monitoring interval).
const EVERY: Duration = Duration::from_secs(10);
/// A measurement is followed by at least so many times its own duration of rest: large trees must not keep a core busy.
const REST: u32 = 20;
/// A claim's volume with more files and folders is not counted: it is on the shared file system, where that takes long.
const CLAIM_ENTRIES: usize = 200_000;

#[derive(Debug)]
pub(crate) struct Meter {
    limits: Option<StorageLimits>,
    last: StorageUse,
    measuring: bool,
    /// Before this it is not measured again.
    next: Option<Instant>,
    helper: Helper,
    happenings: mpsc::UnboundedSender<Happening>,
}

impl Meter {
    /// Measures nothing before [`Meter::begin`].
    #[must_use]
    pub(crate) fn new(plan: &SandboxPlan, helper: Helper, happenings: mpsc::UnboundedSender<Happening>) -> Self {
        let limits = StorageLimits::of(plan);
        Self { limits, last: StorageUse::default(), measuring: false, next: None, helper, happenings }
    }

    /// The sandbox stands.
    pub(crate) fn begin(&mut self) {
        self.next = Some(Instant::now() + EVERY);
    }

    /// When [`Meter::measure`] is due; None: never, or it is under way.
    #[must_use]
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.limits.is_some() && !self.measuring)
    }

    /// What was measured last; measures again, for the next who asks, when that is long ago.
    pub(crate) fn latest(&mut self, plan: &SandboxPlan, paths: &Paths) -> &StorageUse {
        if self.next.is_some_and(|next| next <= Instant::now()) {
            self.measure(plan, paths);
        }
        &self.last
    }

    /// Begins to measure; [`Happening::Stored`] tells the end of it.
    pub(crate) fn measure(&mut self, plan: &SandboxPlan, paths: &Paths) {
        if std::mem::replace(&mut self.measuring, true) {
            return;
        }
        let volumes = plan.volumes.iter().filter(|(_, v)| matches!(v, VolumePlan::EmptyDir { memory: false, .. }));
        let volumes: Vec<String> = volumes.map(|(name, _)| name.clone()).collect();
        let claims: Vec<Claim> =
            plan.volumes.iter().filter_map(|(name, volume)| Claim::of(name, volume, paths)).collect();
        let (paths, happenings) = (paths.clone(), self.happenings.clone());
        self.helper.run(move || {
            let begun = Instant::now();
            let used = measure(&volumes, &claims, &paths);
            let _ = happenings.send(Happening::Stored(used, begun.elapsed()));
        });
    }

    /// A measurement came to its end. Some: a limit is exceeded, in upstream's words.
    pub(crate) fn measured(&mut self, used: StorageUse, took: Duration) -> Option<String> {
        self.measuring = false;
        self.next = Some(Instant::now() + EVERY.max(took * REST));
        self.last = used;
        self.limits.as_ref()?.exceeded(&self.last)
    }
}

/// The volume of a claim.
struct Claim {
    volume: String,
    claim: String,
    path: PathBuf,
}

impl Claim {
    fn of(name: &str, volume: &VolumePlan, paths: &Paths) -> Option<Self> {
        let VolumePlan::Host { index, claim: Some(claim), .. } = volume else { return None };
        Some(Self { volume: name.to_owned(), claim: claim.clone(), path: paths.host.join(index.to_string()) })
    }

    fn measure(&self) -> Option<VolumeStats> {
        let system = nix::sys::statvfs::statvfs(&self.path).ok()?;
        Some(VolumeStats {
            name: self.volume.clone(),
            claim: self.claim.clone(),
            used: tree(&self.path, CLAIM_ENTRIES),
            capacity: system.fragment_size() * system.blocks(),
            available: system.fragment_size() * system.blocks_available(),
            inodes: system.files(),
            inodes_free: system.files_available(),
        })
    }
}

fn measure(volumes: &[String], claims: &[Claim], paths: &Paths) -> StorageUse {
    let mut used = StorageUse { claims: claims.iter().filter_map(Claim::measure).collect(), ..StorageUse::default() };
    let tree = |path: &Path| tree(path, usize::MAX).unwrap_or_default().bytes;
    for name in volumes {
        used.volumes.insert(name.clone(), tree(&paths.empty_dir(name)));
    }
    // Ephemeral containers come later, so the folders say which containers there are.
    for entry in std::fs::read_dir(paths.containers()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let sizes = ContainerUse { rootfs: tree(&entry.path()), logs: tree(&paths.logs(&name)) };
        used.containers.insert(name, sizes);
    }
    used
}

/// What a tree takes on its disk, as `du -x` counts: blocks, each file once. What vanishes meanwhile counts nothing. None: it
/// has more than `most` files and folders.
fn tree(root: &Path, most: usize) -> Option<VolumeUse> {
    let Ok(meta) = std::fs::symlink_metadata(root) else { return Some(VolumeUse::default()) };
    let device = meta.dev();
    let mut total = VolumeUse { bytes: size(&meta), inodes: 1 };
    let mut seen = 0;
    let mut linked = HashSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            seen += 1;
            if seen > most {
                return None;
            }
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != device || (meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino())) {
                continue;
            }
            total.bytes += size(&meta);
            total.inodes += 1;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Some(total)
}

fn size(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_counted_once_and_by_their_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let tree = |path: &Path| tree(path, 100).map(|used| used.bytes);
        let empty = tree(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/a"), vec![1u8; 100_000]).unwrap();
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        // A hole takes no blocks.
        std::fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 30).unwrap();
        let grown = tree(dir.path()).unwrap() - empty;
        assert!((100_000..300_000).contains(&grown), "{grown}");
        assert_eq!(tree(&dir.path().join("nothing")), Some(0));
        assert_eq!(super::tree(dir.path(), 4), None, "five entries");
        assert_eq!(super::tree(dir.path(), 5).map(|used| used.inodes), Some(5), "one file has two names");
    }
}
