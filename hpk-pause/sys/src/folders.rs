//! A folder of one's own below one that everybody may write, such as `/tmp`.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Who takes more names than this fills the file system for all.
const NAMES: u32 = 10_000;

/// Absent names that are looked at for one of ours behind them.
const BEYOND: u32 = 16;

/// The user's folder `hpk-UID` below `base`, made if it is absent. A name that is not a real folder of this user with mode
/// 0700 is passed over for `hpk-UID.1` and so on: somebody else may have taken it first. One that is there already wins
/// over one that could be made, so that all programs of the user find the same one whatever others remove.
///
/// # Errors
/// None can be made.
pub fn own(base: &Path, uid: u32) -> io::Result<PathBuf> {
    std::fs::create_dir_all(base)?;
    let names = || {
        let first = std::iter::once(format!("hpk-{uid}"));
        first.chain((1..NAMES).map(|n| format!("hpk-{uid}.{n}"))).map(|name| base.join(name))
    };
    let mut free = None;
    let mut beyond = 0;
    for path in names() {
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() && meta.uid() == uid && meta.mode() & 0o777 == 0o700 => return Ok(path),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                free.get_or_insert(path);
                beyond += 1;
                if beyond == BEYOND {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    // A name before it may have come to be between, by another program of ours or by somebody else.
    let Some(path) = free else { return Err(io::Error::from(io::ErrorKind::AlreadyExists)) };
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => own(base, uid),
        Err(error) => Err(error),
    }
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
