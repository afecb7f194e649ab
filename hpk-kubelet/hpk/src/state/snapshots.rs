//! Snapshots in `HPK_HOME/etcd-snapshots`: their names, which is the newest, which may go.

use super::record::Generation;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// How many are kept.
const KEPT: usize = 3;
const PREFIX: &str = "etcd-";
const SUFFIX: &str = ".db";

/// A snapshot's name, in the order in which they were made. Clocks of login nodes differ, so it has no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    /// Of the data that it was made of.
    pub generation: Generation,
    /// Within the generation.
    pub serial: u64,
}

impl Name {
    pub(crate) fn file(self) -> String {
        format!("{PREFIX}{:06}-{:06}{SUFFIX}", self.generation, self.serial)
    }

    fn parse(file: &str) -> Option<Self> {
        let (generation, serial) = file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
        let name = Self { generation: generation.parse().ok()?, serial: serial.parse().ok()? };
        (name.file() == file).then_some(name)
    }
}

/// All of a folder, the oldest first. An absent folder has none.
///
/// # Errors
/// The file system's.
pub(crate) fn list(folder: &Path) -> Result<Vec<Name>> {
    let listing = match std::fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    let mut names = Vec::new();
    for entry in listing {
        let file = entry.with_context(|| folder.display().to_string())?.file_name();
        names.extend(file.to_str().and_then(Name::parse));
    }
    names.sort();
    Ok(names)
}

/// The name for the next one of a generation.
pub(crate) fn next(names: &[Name], generation: Generation) -> Name {
    let last = names.iter().filter(|name| name.generation == generation).map(|name| name.serial).max();
    Name { generation, serial: last.map_or(0, |serial| serial + 1) }
}

/// Those that are older than the few that are kept; `names` begins with the oldest.
fn to_remove(names: &[Name]) -> &[Name] {
    &names[..names.len().saturating_sub(KEPT)]
}

/// Removes what is older than the few that are kept, and what a killed process has left half made.
///
/// # Errors
/// The file system's.
pub(crate) fn prune(folder: &Path) -> Result<()> {
    let names = list(folder)?;
    let old = to_remove(&names).iter().map(|name| folder.join(name.file()));
    for path in old.chain(unfinished(folder)) {
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// The file in which a snapshot is made.
pub(crate) fn part(folder: &Path, name: Name) -> PathBuf {
    folder.join(name.file()).with_extension("part")
}

fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "part")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_of_the_newest_generation() {
        let folder = tempfile::tempdir().unwrap();
        let name = |generation, serial| Name { generation, serial };
        assert_eq!(list(&folder.path().join("absent")).unwrap(), []);
        for file in [name(1, 900).file(), name(2, 1).file(), name(2, 0).file()] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        for file in ["record.json", "etcd-1-2.db", "etcd-000002-000009.part", "x.db"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let names = list(folder.path()).unwrap();
        assert_eq!(names, [name(1, 900), name(2, 0), name(2, 1)]);
        assert_eq!(next(&names, 2), name(2, 2));
        assert_eq!(next(&names, 3), name(3, 0));
        assert_eq!(to_remove(&names), []);
        std::fs::write(folder.path().join(name(3, 0).file()), "").unwrap();
        prune(folder.path()).unwrap();
        assert_eq!(list(folder.path()).unwrap(), [name(2, 0), name(2, 1), name(3, 0)]);
        assert!(!folder.path().join("etcd-000002-000009.part").exists());
        assert!(folder.path().join("record.json").exists());
    }
}
