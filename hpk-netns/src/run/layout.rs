//! Where things are: the pod's folder, the installation, the job's node-local scratch. Pure, but for
//! [`Surroundings::of_this_process`].

use hpk_layout::{Home, Install, node};
use std::io;
use std::path::{Path, PathBuf};

/// The user's node-local folder cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("node-local folder {}: {source}; set TMPDIR to a folder on this node that you can write", path.display())]
pub(crate) struct NoFolder {
    /// The folder that it would be in.
    path: PathBuf,
    source: io::Error,
}

/// What the layout is derived from, gathered once at the edge.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    /// `HPK_PREFIX`, when set.
    pub(crate) prefix: Option<PathBuf>,
    /// This program's own path.
    pub(crate) exe: PathBuf,
    /// Folder of all our pods on this node, below `SLURM_TMPDIR`, else `TMPDIR`, else `/tmp`; those that are too long are passed over.
    pub(crate) user: PathBuf,
    /// The user's id.
    pub(crate) uid: u32,
}

impl Surroundings {
    /// From the process' environment. Makes the user's folder, which may have another name than the first where somebody
    /// else has taken that ([`hpk_sys::folders`]).
    ///
    /// # Errors
    /// The folder cannot be had.
    pub(crate) fn of_this_process() -> Result<Self, NoFolder> {
        let uid = nix::unistd::getuid().as_raw();
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let tmp = node_local([path("SLURM_TMPDIR"), path("TMPDIR")]);
        Ok(Self {
            prefix: path("HPK_PREFIX"),
            exe: std::env::current_exe().unwrap_or_default(),
            user: hpk_sys::folders::own(&tmp, uid).map_err(|source| NoFolder { path: tmp, source })?,
            uid,
        })
    }
}

/// The kernel's limit for the path of a socket, without the byte that ends it.
const SOCKET_PATH: usize = 107;
/// The longest of ours below the node-local folder, with the largest ids.
const LONGEST: &str = "/hpk-4294967295.9999/00000000-0000-0000-0000-000000000000/run/supervisor.sock";

/// The first of these folders below which our sockets have their place, else `/tmp`: a login shell's TMPDIR may be long.
fn node_local(asked: [Option<PathBuf>; 2]) -> PathBuf {
    let fits = |path: &PathBuf| path.as_os_str().len() + LONGEST.len() <= SOCKET_PATH;
    asked.into_iter().flatten().find(fits).unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// Every path that one pod's life on this node touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `HPK_HOME/pods/<uid>`, shared file system.
    pub(crate) pod: PathBuf,
    /// `HPK_HOME/images`, shared file system.
    pub(crate) images: PathBuf,
    /// The parent image: a sandbox folder with `/hpk-pause`.
    pub(crate) parent_image: PathBuf,
    /// The program that unpacks images.
    pub(crate) kubelet: PathBuf,
    /// Folder of all our pods on this node, 0700, node-local.
    pub(crate) user: PathBuf,
    /// Images of this HPK_HOME that are unpacked on this node.
    pub(crate) unpacked: PathBuf,
    /// Folder of this HPK_HOME's pods on this node, for packets between them: another cluster of the same user has
    /// pods of the same addresses.
    pub(crate) net: PathBuf,
    /// This pod's folder below [`Self::user`]: everything below it is ours to remove.
    pub(crate) local: PathBuf,
    /// Bound to `/hpk/run`.
    pub(crate) run: PathBuf,
    /// Bound to `/hpk/scratch`.
    pub(crate) scratch: PathBuf,
    /// Bound to `/hpk/host`: mount points for host paths.
    pub(crate) host: PathBuf,
}

impl Layout {
    /// The layout of pod `uid`, whose folder is `pod` (`HPK_HOME/pods/<uid>`).
    pub(crate) fn new(pod: &Path, uid: &str, around: &Surroundings) -> Self {
        let home = Home::of_member(pod);
        let install = Install::find(around.prefix.clone(), &around.exe);
        let user = around.user.clone();
        let local = user.join(uid);
        Self {
            pod: pod.to_path_buf(),
            images: home.images(),
            parent_image: install.pause_image(),
            kubelet: install.kubelet(),
            run: local.join(node::RUN),
            scratch: local.join(node::SCRATCH),
            host: local.join(node::HOST),
            net: user.join(node::packets(home.root())),
            unpacked: user.join(node::unpacked(home.root())),
            user,
            local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_follows_from_pod_folder_executable_and_tmp() {
        let around = Surroundings {
            prefix: None,
            exe: "/home/a/.local/libexec/hpk/hpk-netns".into(),
            user: "/local/job1/hpk-1000".into(),
            uid: 1000,
        };
        let l = Layout::new(Path::new("/home/a/.hpk/pods/u-1"), "u-1", &around);
        assert_eq!(l.images, Path::new("/home/a/.hpk/images"));
        assert_eq!(l.parent_image, Path::new("/home/a/.local/share/hpk/pause"));
        assert_eq!(l.run, Path::new("/local/job1/hpk-1000/u-1/run"));
        let same = Layout::new(Path::new("/home/a/.hpk/pods/u-2"), "u-2", &around);
        let other = Layout::new(Path::new("/home/a/.hpk-2/pods/u-1"), "u-1", &around);
        assert_eq!(l.net, same.net);
        assert_ne!(l.net, other.net);
    }

    #[test]
    fn sockets_have_their_place_below_any_tmp() {
        let of = |slurm: &str, tmp: &str| {
            let path = |text: &str| Some(PathBuf::from(text)).filter(|p| p.is_absolute());
            node_local([path(slurm), path(tmp)])
        };
        let (fits, long) = (format!("/{}", "l".repeat(29)), format!("/{}", "l".repeat(30)));
        assert_eq!(of(&fits, "/local"), Path::new(&fits));
        assert_eq!(of(&long, "/local"), Path::new("/local"));
        assert_eq!(of("", &long), Path::new("/tmp"));
        assert_eq!(of("", ""), Path::new("/tmp"));

        let around = Surroundings {
            user: PathBuf::from(&fits).join(format!("hpk-{}.9999", u32::MAX)),
            uid: u32::MAX,
            ..Surroundings::default()
        };
        let l = Layout::new(Path::new("/h/pods/u"), "00000000-0000-0000-0000-000000000000", &around);
        assert!(l.run.join(node::SUPERVISOR_SOCK).as_os_str().len() <= SOCKET_PATH);
        assert!(l.net.join("255.255.255.255.dp").as_os_str().len() <= SOCKET_PATH);
    }

    #[test]
    fn prefix_wins() {
        let around =
            Surroundings { prefix: Some("/opt/hpk".into()), exe: "/x".into(), user: "/tmp/hpk-7".into(), uid: 7 };
        let l = Layout::new(Path::new("/h/pods/u"), "u", &around);
        assert_eq!(l.parent_image, Path::new("/opt/hpk/share/hpk/pause"));
        assert_eq!(l.scratch, Path::new("/tmp/hpk-7/u/scratch"));
    }
}
