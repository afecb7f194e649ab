//! Where things are: the user's HPK_HOME and the installation.

use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// HPK_HOME cannot be had for this kubelet alone.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another one has it.
    #[error("another hpk-kubelet works on {0}: stop it first (hpk down)")]
    Taken(PathBuf),
    /// The file system's.
    #[error("cannot lock {path}")]
    Io {
        /// Lock file.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

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

    /// HPK_HOME itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
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

    /// `log/`: logs of the control plane's programs and the kubelet.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// `gangs/`
    #[must_use]
    pub fn gangs(&self) -> PathBuf {
        self.root.join(hpk_api::gang::FOLDER)
    }

    /// `images/`
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// `volumes/`: volumes of claims whose class says no other place.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// `volumes/.one-pod/`: which pod has a claim that one pod at a time may have.
    #[must_use]
    pub fn one_pod(&self) -> PathBuf {
        self.volumes().join(".one-pod")
    }

    /// `addresses`: up to where pod addresses were given ([`crate::pods::address`]).
    #[must_use]
    pub fn addresses(&self) -> PathBuf {
        self.root.join("addresses")
    }

    /// `net.d/`: the user's CNI configuration lists.
    #[must_use]
    pub fn network_lists(&self) -> PathBuf {
        self.root.join("net.d")
    }

    /// `pki/`
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// `run/member-link.json`: what the control plane's member links with.
    #[must_use]
    pub fn member_link(&self) -> PathBuf {
        self.root.join("run/member-link.json")
    }

    /// Takes the home for this process: two kubelets would submit every pod twice.
    ///
    /// # Errors
    /// Another kubelet has it.
    pub fn lock(&self) -> Result<Flock<File>, LockError> {
        let folder = self.root.join("run");
        let path = folder.join("kubelet.lock");
        let fail = |source| LockError::Io { path: path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fail)?;
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::errno::Errno::EWOULDBLOCK => LockError::Taken(self.root.clone()),
            error => LockError::Io { path: path.clone(), source: error.into() },
        })
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
