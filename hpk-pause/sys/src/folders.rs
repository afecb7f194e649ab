//! A folder of one's own below one that everybody may write, such as `/tmp`.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How often a name that is free may be taken before it is made: somebody takes them on purpose.
const TRIES: u32 = 100;

/// Names that are looked at where `base` cannot be listed.
const UNLISTED: u32 = 64;

/// The user's folder `hpk-UID` below `base`, made if it is absent. A name that is not a real folder of this user with mode
/// 0700 is passed over for `hpk-UID.1` and so on: somebody else may have taken it first. One that is there already wins
/// over one that could be made, so that all programs of the user find the same one whatever others remove.
///
/// # Errors
/// None can be made.
pub fn own(base: &Path, uid: u32) -> io::Result<PathBuf> {
    std::fs::create_dir_all(base)?;
    for _ in 0..TRIES {
        let taken = taken(base, uid)?;
        for &number in &taken {
            let path = base.join(name(uid, number));
            match std::fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o777 == 0o700 => return Ok(path),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let Some(free) = (0..u32::MAX).find(|number| !taken.contains(number)) else { break };
        let path = base.join(name(uid, free));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            // Another program of ours has made it, or somebody else.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

fn name(uid: u32, number: u32) -> String {
    if number == 0 { format!("hpk-{uid}") } else { format!("hpk-{uid}.{number}") }
}

/// Numbers of the names that are there.
fn taken(base: &Path, uid: u32) -> io::Result<BTreeSet<u32>> {
    let listing = match std::fs::read_dir(base) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok((0..UNLISTED).filter(|n| base.join(name(uid, *n)).symlink_metadata().is_ok()).collect());
        }
        Err(error) => return Err(error),
    };
    let (first, prefix) = (name(uid, 0), format!("hpk-{uid}."));
    let numbers = listing.filter_map(|entry| {
        let found = entry.ok()?.file_name().into_string().ok()?;
        let number = if found == first { 0 } else { found.strip_prefix(&prefix)?.parse().ok()? };
        // `.01` is no name of ours.
        (name(uid, number) == found).then_some(number)
    });
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn names_that_are_not_ours_are_passed_over() {
        let (tmp, uid) = (tempfile::tempdir().unwrap(), nix::unistd::getuid().as_raw());
        let name = |n: &str| tmp.path().join(format!("hpk-{uid}{n}"));
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        // Open to others, a link to a folder of ours, a file.
        std::fs::create_dir(name("")).unwrap();
        mode(&name(""), 0o777);
        std::fs::create_dir(tmp.path().join("elsewhere")).unwrap();
        mode(&tmp.path().join("elsewhere"), 0o700);
        symlink(tmp.path().join("elsewhere"), name(".1")).unwrap();
        std::fs::write(name(".2"), "").unwrap();
        assert_eq!(own(tmp.path(), uid).unwrap(), name(".3"));
        // Others remove what they took: those who come now find the same one.
        std::fs::remove_dir(name("")).unwrap();
        assert_eq!(own(tmp.path(), uid).unwrap(), name(".3"));
        assert!(!name("").exists());
        // However many they had.
        std::fs::rename(name(".3"), name(".4000")).unwrap();
        assert_eq!(own(tmp.path(), uid).unwrap(), name(".4000"));
        std::fs::rename(name(".4000"), name(".01")).unwrap();
        assert_eq!(own(tmp.path(), uid).unwrap(), name(""), "a name that is none of ours");
        std::fs::remove_dir(name("")).unwrap();
        std::fs::rename(name(".01"), name(".3")).unwrap();
        assert_eq!(name(".3").metadata().unwrap().mode() & 0o777, 0o700);
        // As somebody else would see all of them.
        std::fs::create_dir(tmp.path().join(format!("hpk-{}", uid + 1))).unwrap();
        assert_eq!(own(tmp.path(), uid + 1).unwrap(), tmp.path().join(format!("hpk-{}.1", uid + 1)));
    }

    #[test]
    fn all_find_the_same_one_and_the_first_is_made() {
        let (tmp, uid) = (tempfile::tempdir().unwrap(), nix::unistd::getuid().as_raw());
        let base = tmp.path().join("job");
        assert_eq!(own(&base, uid).unwrap(), base.join(format!("hpk-{uid}")));
        assert_eq!(own(&base, uid).unwrap(), base.join(format!("hpk-{uid}")));
    }
}
