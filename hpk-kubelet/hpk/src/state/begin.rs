//! What etcd starts from. Pure.

use super::record::Generation;
use super::snapshots::Name;
use std::path::{Path, PathBuf};

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    /// Where the data is to lie.
    pub target: &'a Path,
    /// The cluster's generation, by HPK_HOME's record.
    pub generation: Generation,
    /// Data folders on this machine, with their generations.
    pub data: &'a [(PathBuf, Generation)],
    /// The target was made ready in the cluster's generation, and etcd has not stored anything in it.
    pub unused: bool,
    /// The newest snapshot.
    pub snapshot: Option<Name>,
}

/// What is to be done before etcd starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// The data is where it is to be.
    Continue,
    /// Nothing was ever stored.
    Fresh,
    /// The data is in another folder of this machine.
    Move(PathBuf),
    /// The data is on another machine, or gone.
    Restore(Name),
    /// The data is on another machine, and no snapshot was made of it.
    Lost,
}

/// Data counts only in the cluster's own generation: an older one is what a login node has kept since the cluster went on
/// elsewhere.
pub(crate) fn begin(found: &Found<'_>) -> Begin {
    let mut current = found.data.iter().filter(|(_, generation)| *generation == found.generation).map(|(path, _)| path);
    if current.clone().any(|path| path == found.target) {
        return Begin::Continue;
    }
    match (current.next(), found.snapshot) {
        (Some(other), _) => Begin::Move(other.clone()),
        (None, Some(name)) => Begin::Restore(name),
        (None, None) if found.generation == 0 || found.unused => Begin::Fresh,
        (None, None) => Begin::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOME: &str = "/h/etcd";
    const DISK: &str = "/var/tmp/hpk-1000/etcd-1";

    fn at(data: &[(&str, Generation)], target: &str, generation: Generation, snapshot: Option<Name>) -> Begin {
        let data: Vec<_> = data.iter().map(|(path, generation)| (PathBuf::from(path), *generation)).collect();
        begin(&Found { target: Path::new(target), generation, data: &data, unused: false, snapshot })
    }

    #[test]
    fn each_start_has_its_data() {
        let name = Name { generation: 2, serial: 7 };
        // A new cluster; one that has always been in HPK_HOME.
        assert_eq!(at(&[], HOME, 0, None), Begin::Fresh);
        assert_eq!(at(&[], DISK, 0, None), Begin::Fresh);
        assert_eq!(at(&[(HOME, 0)], HOME, 0, None), Begin::Continue);
        // To the login node's disk, and back.
        assert_eq!(at(&[(HOME, 0)], DISK, 0, None), Begin::Move(HOME.into()));
        assert_eq!(at(&[(HOME, 0), (DISK, 1)], DISK, 1, None), Begin::Continue);
        assert_eq!(at(&[(HOME, 0), (DISK, 1)], HOME, 1, Some(name)), Begin::Move(DISK.into()));
        // Another login node, which has kept what was there long ago.
        assert_eq!(at(&[], DISK, 2, Some(name)), Begin::Restore(name));
        assert_eq!(at(&[(DISK, 1)], DISK, 2, Some(name)), Begin::Restore(name));
        assert_eq!(at(&[(HOME, 0), (DISK, 1)], DISK, 2, None), Begin::Lost);
    }

    proptest! {
        /// Old data is never used, and nothing begins empty that has had data.
        #[test]
        fn only_the_clusters_own_generation_is_used(
            data in proptest::collection::vec((0_usize..3, 0_u64..4), 0..4),
            target in 0_usize..3,
            generation in 0_u64..4,
            snapshot in proptest::option::of((0_u64..4, 0_u64..3)),
            unused: bool,
        ) {
            let path = |n: usize| PathBuf::from(format!("/{n}"));
            let data: Vec<_> = data.into_iter().map(|(n, generation)| (path(n), generation)).collect();
            let target = path(target);
            let snapshot = snapshot.map(|(generation, serial)| Name { generation, serial });
            let found = Found { target: &target, generation, data: &data, unused, snapshot };
            match begin(&found) {
                Begin::Continue => prop_assert!(data.contains(&(target.clone(), generation))),
                Begin::Move(from) => {
                    prop_assert!(data.contains(&(from.clone(), generation)) && from != target);
                }
                Begin::Restore(name) => {
                    prop_assert!(data.iter().all(|(_, g)| *g != generation) && Some(name) == snapshot);
                }
                Begin::Fresh => {
                    let none = data.iter().all(|(_, g)| *g != generation);
                    prop_assert!((generation == 0 || unused) && none && snapshot.is_none());
                }
                Begin::Lost => prop_assert!(generation > 0 && !unused && snapshot.is_none()),
            }
        }
    }
}
