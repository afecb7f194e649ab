//! Where things are: the user's HPK_HOME and the installation.

use std::path::{Path, PathBuf};

/// Folders below HPK_HOME.
#[derive(Clone, Debug)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home that holds this `cluster.json`.
    #[must_use]
    pub fn of_cluster_file(path: &Path) -> Self {
        let root = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Self { root: std::path::absolute(root).unwrap_or_else(|_| root.to_owned()) }
    }

    /// `pods/`
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `pods/<uid>`
    #[must_use]
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// `images/`
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// `pki/`
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// `registries.json`: the user's registry settings.
    #[must_use]
    pub fn registries(&self) -> PathBuf {
        self.root.join("registries.json")
    }
}

/// The installed programs.
#[derive(Clone, Debug)]
pub struct Install {
    /// `libexec/hpk/hpk-netns`
    pub netns: PathBuf,
}

impl Install {
    /// Relative to `HPK_PREFIX`, else to the folder above this program's `bin/`.
    #[must_use]
    pub fn find(prefix: Option<PathBuf>, program: &Path) -> Self {
        let prefix = prefix
            .or_else(|| program.parent().and_then(Path::parent).map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("/usr/local"));
        Self { netns: prefix.join("libexec/hpk/hpk-netns") }
    }
}
