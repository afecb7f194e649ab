//! Where etcd's data is to lie.

use super::record::Record;
use anyhow::{Context, Result};
use hpk_layout::Home;
use std::path::{Path, PathBuf};

/// Folders of a login node's own disk, the first that is on no network file system is taken. `/var/tmp` outlives a reboot.
const LOCAL: [&str; 2] = ["/var/tmp", "/tmp"];

/// `hpk up --etcd-data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// By the file system of HPK_HOME.
    Auto,
    /// In HPK_HOME.
    Home,
    /// Below a folder of the login node's own disk.
    Local(PathBuf),
}

/// Reads `--etcd-data`.
pub(crate) fn parse(text: &str) -> Result<Choice, String> {
    match text {
        "auto" => Ok(Choice::Auto),
        "home" => Ok(Choice::Home),
        path if path.starts_with('/') && path != "/" && !path.contains([',', ':', '=']) => {
            Ok(Choice::Local(PathBuf::from(path)))
        }
        _ => Err("must be auto, home, or an absolute path of this machine's own disk such as /var/tmp".to_owned()),
    }
}

/// The folder below which the data is to lie; None: in HPK_HOME. A choice stays until it is given again; a cluster that has
/// its data in HPK_HOME already keeps it there.
fn decide(asked: Option<&Choice>, record: Option<&Record>, in_home: bool, auto: Option<&Path>) -> Option<PathBuf> {
    match (asked, record) {
        (Some(Choice::Home), _) => None,
        (Some(Choice::Local(base)), _) => Some(base.clone()),
        (Some(Choice::Auto), _) => auto.map(Path::to_owned),
        (None, Some(record)) => record.base.clone(),
        (None, None) if in_home => None,
        (None, None) => auto.map(Path::to_owned),
    }
}

/// As [`decide`] has it, made from what is on disk.
///
/// # Errors
/// The record is damaged.
pub(crate) fn choose(home: &Home, asked: Option<&Choice>) -> Result<Option<PathBuf>> {
    let record = Record::read(home)?;
    let in_home = Home::etcd_member(&home.etcd()).exists();
    let auto = hpk_images::shared_by(home.root()).map(|_| local());
    Ok(decide(asked, record.as_ref(), in_home, auto.as_deref()))
}

fn local() -> PathBuf {
    let own = LOCAL.iter().map(Path::new).find(|path| path.is_dir() && hpk_images::shared_by(path).is_none());
    own.unwrap_or(Path::new(LOCAL[0])).to_owned()
}

/// The data folder for a base: one for each HPK_HOME, in a folder of the user's that nobody else can read.
///
/// # Errors
/// It cannot be made.
pub(crate) fn folder(home: &Home, base: Option<&Path>) -> Result<PathBuf> {
    let Some(base) = base else { return Ok(home.etcd()) };
    let own = hpk_sys::folders::own(base, nix::unistd::geteuid().as_raw())
        .with_context(|| format!("--etcd-data {}: a folder of yours cannot be made in it", base.display()))?;
    Ok(own.join(format!("etcd-{}", mark(home.root()))))
}

/// Removes the data that this machine has outside of HPK_HOME.
///
/// # Errors
/// The file system's.
pub(crate) fn remove(home: &Home) -> Result<()> {
    let Ok(Some(Record { base: Some(base), .. })) = Record::read(home) else { return Ok(()) };
    let data = folder(home, Some(&base))?;
    for path in [data.clone(), data.with_added_extension("former"), data.with_added_extension("new")] {
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| path.display().to_string());
            }
            _ => {}
        }
    }
    let _absent = std::fs::remove_file(super::record::beside(&data));
    Ok(())
}

/// A short name for a path: one user can have several clusters.
fn mark(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_stays_until_it_is_given_again() {
        let (tmp, disk) = (Path::new("/var/tmp"), Path::new("/disk"));
        let at = |base: Option<&Path>| Record { generation: 3, base: base.map(Path::to_owned), host: "a".into() };
        let own = Choice::Local(disk.to_owned());
        // asked, record, in HPK_HOME, what the file system says: where
        let cases = [
            (None, None, false, None, None),
            (None, None, false, Some(tmp), Some(tmp)),
            (None, None, true, Some(tmp), None),
            (None, Some(at(Some(disk))), false, None, Some(disk)),
            (None, Some(at(None)), true, Some(tmp), None),
            (Some(&Choice::Home), Some(at(Some(disk))), false, Some(tmp), None),
            (Some(&own), None, true, None, Some(disk)),
            (Some(&Choice::Auto), Some(at(Some(disk))), false, None, None),
            (Some(&Choice::Auto), None, true, Some(tmp), Some(tmp)),
        ];
        for (asked, record, in_home, auto, expected) in cases {
            let found = decide(asked, record.as_ref(), in_home, auto);
            assert_eq!(found.as_deref(), expected, "{asked:?} {record:?} {in_home} {auto:?}");
        }
    }

    #[test]
    fn only_places_that_a_program_can_be_given() {
        assert_eq!(parse("home"), Ok(Choice::Home));
        assert_eq!(parse("/disk"), Ok(Choice::Local("/disk".into())));
        for wrong in ["", "disk", "/", "/a,b", "/a:b", "/a=b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
