//! Gives files in a pod's volumes to users of its containers: to subordinate ids, which takes a user namespace. So it is
//! done by a process of its own ([`main`]). Blocking.

use hpk_sys::{beneath, userns};
use rustix::fs::{AtFlags, Uid, chownat};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// First argument of the program that calls [`main`].
pub const COMMAND: &str = "give-files";

/// Gives files of the folder `below` of `pod` to users as the pod's containers number them.
///
/// # Errors
/// When one of them was not given.
pub(crate) fn give(pod: &Path, below: &Path, gifts: &[(&str, u32)]) -> io::Result<()> {
    let mut args = vec![COMMAND.into(), pod.as_os_str().to_owned(), below.as_os_str().to_owned()];
    args.extend(gifts.iter().flat_map(|(path, uid)| [OsString::from(uid.to_string()), path.into()]));
    // This very program, also when it was replaced by a newer one meanwhile.
    match userns::run(Path::new("/proc/self/exe"), &args) {
        Ok(0) => Ok(()),
        Ok(code) => Err(io::Error::other(format!("exit code {code}"))),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The process: `give-files POD FOLDER UID PATH [UID PATH]…`.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(2).collect();
    let [pod, below, gifts @ ..] = args.as_slice() else { return ExitCode::from(2) };
    let (gifts, []) = gifts.as_chunks::<2>() else { return ExitCode::from(2) };
    for [uid, path] in gifts {
        let Some(uid) = uid.to_str().and_then(|uid| uid.parse().ok()) else { return ExitCode::from(2) };
        if one(Path::new(pod), &Path::new(below).join(path), uid).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Without following a link: a pod may have put one there.
fn one(pod: &Path, path: &Path, uid: u32) -> io::Result<()> {
    let folder = beneath::folder(pod, path.parent().unwrap_or(Path::new("")))?;
    let name = path.file_name().unwrap_or_default();
    Ok(chownat(folder, name, Some(Uid::from_raw(uid)), None, AtFlags::SYMLINK_NOFOLLOW)?)
}
