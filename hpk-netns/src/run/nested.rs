//! The node's Apptainer inside the parent container, for pods whose containers it is to make: on kernels that give a user
//! namespace no overlay, or where the pod says so. Pure: [`Nested::choose`] is told what exists.

use hpk_api::plan::LauncherChoice;
use std::path::{Path, PathBuf};

/// First Linux with overlay in user namespaces; an older one may have it by its distribution, which the supervisor tries.
const OVERLAY_SINCE: (u32, u32) = (5, 11);

/// What Apptainer runs with, where the node has it: programs and libraries, its configuration, its session folder.
const FOLDERS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/apptainer", "/var/lib/apptainer"];

/// Binds of the parent container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nested {
    /// Read-only, each where it is on the node.
    pub(crate) folders: Vec<PathBuf>,
    /// For fuse-overlayfs.
    pub(crate) fuse: Option<PathBuf>,
    /// Apptainer, in the parent container as on the node.
    pub(crate) program: PathBuf,
}

impl Nested {
    /// `release`: the kernel's, as uname(2) has it. `program`: Apptainer, without links.
    pub(crate) fn choose(
        choice: LauncherChoice,
        release: &str,
        program: &Path,
        exists: impl Fn(&Path) -> bool,
    ) -> Option<Self> {
        match choice {
            LauncherChoice::Native => return None,
            LauncherChoice::Auto if version(release).is_none_or(|version| version >= OVERLAY_SINCE) => return None,
            LauncherChoice::Auto | LauncherChoice::Apptainer => {}
        }
        let mut folders: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).filter(|path| exists(path)).collect();
        // An installation of its own, <prefix>/bin/apptainer.
        let prefix = program.parent().and_then(Path::parent).filter(|prefix| *prefix != Path::new("/"));
        folders.extend(prefix.filter(|prefix| !prefix.starts_with("/usr")).map(PathBuf::from));
        let fuse = Some(PathBuf::from("/dev/fuse")).filter(|path| exists(path));
        Some(Self { folders, fuse, program: program.to_owned() })
    }
}

/// Major and minor of `5.10.0-28-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(choice: LauncherChoice, release: &str, program: &str) -> Option<Nested> {
        Nested::choose(choice, release, Path::new(program), |path| path != Path::new("/lib64"))
    }

    #[test]
    fn only_where_it_may_be_needed() {
        use LauncherChoice::{Apptainer, Auto, Native};
        for (choice, release, brought) in [
            (Auto, "6.12.0-1-amd64", false),
            (Auto, "5.11.0", false),
            (Auto, "5.10.0-28-amd64", true),
            (Auto, "4.18.0-513.el8.x86_64", true),
            (Auto, "unheard of", false),
            (Native, "4.18.0-513.el8.x86_64", false),
            (Apptainer, "6.12.0-1-amd64", true),
        ] {
            assert_eq!(chosen(choice, release, "/usr/bin/apptainer").is_some(), brought, "{choice:?} {release}");
        }
    }

    #[test]
    fn an_installation_elsewhere_is_brought_too() {
        let usual = chosen(LauncherChoice::Apptainer, "6.1.0", "/usr/local/bin/apptainer").unwrap();
        assert_eq!(usual.folders.len(), FOLDERS.len() - 1);
        assert_eq!(usual.fuse.as_deref(), Some(Path::new("/dev/fuse")));
        let other = chosen(LauncherChoice::Apptainer, "6.1.0", "/opt/apptainer/1.4/bin/apptainer").unwrap();
        assert_eq!(other.folders.last().map(PathBuf::as_path), Some(Path::new("/opt/apptainer/1.4")));
    }
}
