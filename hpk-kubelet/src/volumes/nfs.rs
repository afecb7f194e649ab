//! nfs: an export that the site has mounted. A user cannot mount one, so the mount is looked for, on the login node: the
//! compute nodes are taken to have it at the same place.

use super::VolumeError;
use hpk_api::plan::{HostBind, VolumePlan};
use k8s_openapi::api::core::v1::NFSVolumeSource;
use thiserror::Error;

/// No mount of the site shows this.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "nfs {server}:{path} is not mounted on this node, and a user cannot mount it: ask the site for the mount, or use hostPath"
)]
pub(crate) struct NfsError {
    pub server: String,
    pub path: String,
}

pub(super) fn plan(
    volume: &str,
    source: &NFSVolumeSource,
    mounts: &str,
    binds: &mut Vec<HostBind>,
) -> Result<VolumePlan, VolumeError> {
    let found = find(mounts, &source.server, &source.path);
    let path = found.map_err(|cause| VolumeError::Nfs { volume: volume.to_owned(), cause })?;
    binds.push(HostBind { source: path, kind: "Directory".to_owned() });
    Ok(VolumePlan::Host { index: binds.len() - 1, read_only: source.read_only == Some(true), group: None, claim: None })
}

/// Where `server:path` is in the node's tree. `mounts`: /proc/self/mountinfo.
///
/// # Errors
/// It is nowhere.
pub(crate) fn find(mounts: &str, server: &str, path: &str) -> Result<String, NfsError> {
    let no_mount = || NfsError { server: server.to_owned(), path: path.to_owned() };
    let safe = path.starts_with('/') && path.split('/').all(|part| part != "..");
    let candidates = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, device) = (right.next()?, right.next()?);
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let (host, export) = device.rsplit_once(":/")?;
        if !kind.starts_with("nfs") || host != server {
            return None;
        }
        // What is at the mount point: the export, or a folder of it that was bound there.
        let shown = joined(&format!("/{}", unescaped(export)), &unescaped(root));
        let rest = below(&shown, path)?;
        Some((shown.len(), joined(&unescaped(point), rest)))
    });
    let best = candidates.filter(|_| safe).max_by_key(|(length, _)| *length);
    best.map(|(_, place)| place).ok_or_else(no_mount)
}

/// What of `path` is below `folder`.
fn below<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    let folder = folder.trim_end_matches('/');
    let rest = path.strip_prefix(folder)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/'))
}

fn joined(folder: &str, rest: &str) -> String {
    let (folder, rest) = (folder.trim_end_matches('/'), rest.trim_matches('/'));
    match (folder.is_empty(), rest.is_empty()) {
        (true, true) => "/".to_owned(),
        (_, true) => folder.to_owned(),
        _ => format!("{folder}/{rest}"),
    }
}

/// mountinfo writes blanks as `\040`.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "21 1 8:1 / / rw - ext4 /dev/sda1 rw
36 35 0:40 / /data rw shared:1 - nfs4 filer:/export rw
37 35 0:41 / /projects/my\\040own rw - nfs filer:/export/projects/own rw
38 35 0:42 /alice /home/alice rw - nfs4 fd00::1:/homes rw
";

    #[test]
    fn the_closest_mount_shows_an_export() {
        for (server, path, place) in [
            ("filer", "/export", Some("/data")),
            ("filer", "/export/a/b/", Some("/data/a/b")),
            ("filer", "/export/projects/own/x", Some("/projects/my own/x")),
            ("filer", "/exports", None),
            ("filer", "/", None),
            ("filer", "/export/../etc", None),
            ("other", "/export", None),
            ("fd00::1", "/homes/alice/x", Some("/home/alice/x")),
            ("fd00::1", "/homes/bob", None),
        ] {
            assert_eq!(find(MOUNTS, server, path).ok().as_deref(), place, "{server}:{path}");
        }
    }
}
