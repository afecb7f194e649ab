//! The installed programs and images, below one prefix.

use std::path::{Path, PathBuf};

/// `bin/`, `libexec/hpk/` and `share/hpk/` below one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    prefix: PathBuf,
}

const LIBEXEC: &str = "libexec/hpk";

impl Install {
    /// What `HPK_PREFIX` says, else the prefix that `program` is in: below `bin/` or `libexec/hpk/`. `/usr/local` where the
    /// program's path tells nothing.
    #[must_use]
    pub fn find(prefix: Option<PathBuf>, program: &Path) -> Self {
        let beside = program.parent().and_then(|folder| {
            let up = if folder.ends_with(LIBEXEC) { folder.parent() } else { Some(folder) };
            up.and_then(Path::parent).map(Path::to_owned)
        });
        let prefix = prefix.filter(|p| !p.as_os_str().is_empty()).or(beside);
        Self { prefix: prefix.unwrap_or_else(|| PathBuf::from("/usr/local")) }
    }

    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    #[must_use]
    pub fn kubelet(&self) -> PathBuf {
        self.prefix.join("bin/hpk-kubelet")
    }

    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.prefix.join("bin/kubectl")
    }

    #[must_use]
    pub fn netns(&self) -> PathBuf {
        self.libexec("hpk-netns")
    }

    /// A helper program of the compute nodes.
    #[must_use]
    pub fn libexec(&self, name: &str) -> PathBuf {
        self.prefix.join(LIBEXEC).join(name)
    }

    /// The control plane's image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.share().join("control-plane.sqfs")
    }

    /// The pods' parent image: a sandbox folder with hpk-pause in it.
    #[must_use]
    pub fn pause_image(&self) -> PathBuf {
        self.share().join("pause")
    }

    /// The list of the files that were installed, relative to the prefix.
    #[must_use]
    pub fn installed(&self) -> PathBuf {
        self.share().join("installed")
    }

    /// Applications that came with HPK.
    #[must_use]
    pub fn apps(&self) -> PathBuf {
        self.share().join("apps")
    }

    fn share(&self) -> PathBuf {
        self.prefix.join("share/hpk")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_told_or_read_from_the_programs_path() {
        let of = |prefix: Option<&str>, program: &str| {
            Install::find(prefix.map(PathBuf::from), Path::new(program)).prefix().to_owned()
        };
        assert_eq!(of(None, "/home/a/.local/bin/hpk"), Path::new("/home/a/.local"));
        assert_eq!(of(None, "/home/a/.local/libexec/hpk/hpk-netns"), Path::new("/home/a/.local"));
        assert_eq!(of(Some("/opt/hpk"), "/home/a/.local/bin/hpk"), Path::new("/opt/hpk"));
        assert_eq!(of(Some(""), "/x/bin/hpk"), Path::new("/x"));
        assert_eq!(of(None, ""), Path::new("/usr/local"));
    }
}
