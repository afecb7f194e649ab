//! Names on a compute node, below the user's own folder (`/tmp/hpk-<uid>`, say) and below a pod's folder in it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The user's folder begins so.
pub const USER: &str = "hpk-";

/// Of a pod's folder: sockets; bound to [`crate::parent::RUN`].
pub const RUN: &str = "run";
/// Of a pod's folder: writable layers and emptyDir volumes; bound to [`crate::parent::SCRATCH`].
pub const SCRATCH: &str = "scratch";
/// Of a pod's folder: mount points for host paths; bound to [`crate::parent::HOST`].
pub const HOST: &str = "host";
/// Of a pod's folder: mount points of images; bound to [`crate::parent::MOUNTED`].
pub const IMAGES: &str = "images";
/// Of a pod's folder: what CNI plug-ins are given, and what they left.
pub const CNI: &str = "cni";
/// Of every folder that somebody uses: its user keeps it locked. Whoever gets the lock knows that the user is dead.
pub const LOCK: &str = "lock";
/// Of the user's folder: locked by the one who makes or removes folders in it.
pub const TURN: &str = ".turn";

/// The supervisor's control socket, in [`RUN`].
pub const SUPERVISOR_SOCK: &str = "supervisor.sock";
/// hpk-netns' socket (network set-up, TUN hand-over), in [`RUN`].
pub const NETNS_SOCK: &str = "netns.sock";
/// hpk-netns' socket for a carrier of the link, where the kubelet cannot be dialled; in [`RUN`].
pub const LINK_SOCK: &str = "link.sock";
/// Where processes in the node's network get sockets of the pods' network (`hpk_api::crossing`); in [`RUN`].
pub const CROSSING_SOCK: &str = "crossing.sock";
/// Where the member's helper in its namespace is asked for sockets.
pub const INSIDE_SOCK: &str = "inside.sock";
/// Where an outpost takes its helper's TUN.
pub const OUTPOST_SOCK: &str = "outpost.sock";
/// No socket: what a link is given as the supervisor's where there is no supervisor.
pub const NO_SOCK: &str = "none.sock";

/// How the name of [`packets`] begins.
const PACKETS: &str = "net-";
/// How the name of [`old`] begins.
const OLD: &str = ".old-";

/// Of the user's folder: the sockets for packets between the pods of the cluster in `home`. Another cluster of the same user
/// has pods of the same addresses.
#[must_use]
pub fn packets(home: &Path) -> String {
    format!("{PACKETS}{:016x}", fingerprint(home))
}

/// Whether a name in the user's folder is some cluster's [`packets`].
#[must_use]
pub fn is_packets(name: &OsStr) -> bool {
    name.as_bytes().starts_with(PACKETS.as_bytes())
}

/// Of the user's folder: images of this home that are unpacked on this node.
#[must_use]
pub fn unpacked(home: &Path) -> String {
    format!("img-{:016x}", fingerprint(home))
}

/// Of the user's folder: the folder of this home's member. Two clusters of one user may share a login node.
#[must_use]
pub fn member(home: &Path) -> String {
    format!("member-{}", packets(home))
}

/// Of the user's folder: what the ranks of one instance of an MPI step share on this node.
#[must_use]
pub fn ranks(uid: &str, job: &str, instance: u32) -> String {
    format!("{uid}.{job}.{instance}")
}

/// Beside a folder: its name while it is removed by the process `pid`.
#[must_use]
pub fn old(name: &OsStr, pid: u32) -> String {
    format!("{OLD}{pid}-{}", name.to_string_lossy())
}

/// Whether a name is one of [`old`].
#[must_use]
pub fn is_old(name: &OsStr) -> bool {
    name.as_bytes().starts_with(OLD.as_bytes())
}

/// FNV-1a: every program of one version must find the same folder, and nothing depends on it being hard to guess.
fn fingerprint(path: &Path) -> u64 {
    path.as_os_str()
        .as_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_home_has_folders_of_its_own() {
        let (one, other) = (Path::new("/home/a/.hpk"), Path::new("/home/a/.hpk-2"));
        for name in [packets, unpacked, member] {
            assert_ne!(name(one), name(other));
            assert_eq!(name(one), name(one));
        }
        assert!(is_packets(OsStr::new(&packets(one))));
        assert!(!is_packets(OsStr::new(&unpacked(one))) && !is_packets(OsStr::new(&member(one))));
    }
}
