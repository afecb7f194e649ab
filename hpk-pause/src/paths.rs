//! Where everything of this pod is. Pure, but for [`Paths::rootfs`].

use hpk_layout::{image, node, parent, pod};
use std::path::{Path, PathBuf};

/// The folders that the supervisor works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub plan: PathBuf,
    /// The pod's folder on the shared file system.
    pub pod: PathBuf,
    /// The image store.
    pub images: PathBuf,
    /// Images of the store that are files there, as folders.
    pub mounted: PathBuf,
    /// Node-local scratch of this job.
    pub scratch: PathBuf,
    /// hostPath binds.
    pub host: PathBuf,
    pub run: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            plan: Path::new(parent::POD).join(pod::PLAN),
            pod: parent::POD.into(),
            images: parent::IMAGES.into(),
            mounted: parent::MOUNTED.into(),
            scratch: parent::SCRATCH.into(),
            host: parent::HOST.into(),
            run: parent::RUN.into(),
        }
    }
}

impl Paths {
    /// status.json
    #[must_use]
    pub fn status(&self) -> PathBuf {
        self.pod.join(pod::STATUS)
    }

    /// The control socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join(node::SUPERVISOR_SOCK)
    }

    /// hpk-netns' socket.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        self.run.join(node::NETNS_SOCK)
    }

    /// Where sockets of the pods' network are given out.
    #[must_use]
    pub fn crossing(&self) -> PathBuf {
        self.run.join(node::CROSSING_SOCK)
    }

    /// Root file system of an image. It is looked at whether the image is mounted.
    #[must_use]
    pub fn rootfs(&self, folder: &str) -> PathBuf {
        let mounted = self.mounted.join(folder);
        let place = if !folder.is_empty() && mounted.is_dir() { mounted } else { self.images.join(folder) };
        place.join(image::ROOTFS)
    }

    /// Logs of a container.
    #[must_use]
    pub fn logs(&self, container: &str) -> PathBuf {
        self.pod.join(pod::LOGS).join(container)
    }

    /// Node-local files of all containers, a folder each.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.scratch.join("containers")
    }

    /// Node-local files of one instance of a container.
    #[must_use]
    pub fn instance(&self, container: &str, instance: u32) -> PathBuf {
        self.containers().join(container).join(instance.to_string())
    }

    /// Node-local emptyDir volumes, a folder each.
    #[must_use]
    pub fn empty_dirs(&self) -> PathBuf {
        self.scratch.join("volumes")
    }

    /// An emptyDir volume.
    #[must_use]
    pub fn empty_dir(&self, volume: &str) -> PathBuf {
        self.empty_dirs().join(volume)
    }

    /// Where an emptyDir volume lies that all nodes of an MPI step see; [`Self::empty_dir`] is a mount of it.
    #[must_use]
    pub fn shared_empty_dir(&self, volume: &str) -> PathBuf {
        self.pod.join(pod::SHARED).join(volume)
    }

    /// A volume that the kubelet fills.
    #[must_use]
    pub fn kubelet_volume(&self, folder: &str) -> PathBuf {
        self.pod.join(pod::VOLUMES).join(folder)
    }

    /// Files for /etc of the containers.
    #[must_use]
    pub fn etc_files(&self) -> PathBuf {
        self.scratch.join("etc")
    }

    /// A file for /etc of the containers: `hosts`, `resolv.conf`, `hostname`.
    #[must_use]
    pub fn etc(&self, name: &str) -> PathBuf {
        self.etc_files().join(name)
    }

    /// A file for /etc of the ranks of an MPI step, which are in the node's network.
    #[must_use]
    pub fn step_etc(&self, name: &str) -> PathBuf {
        self.etc(&format!("step-{name}"))
    }

    /// What every rank of an MPI step reads.
    #[must_use]
    pub fn step_file(&self, instance: u32) -> PathBuf {
        self.pod.join(pod::step(instance))
    }

    /// The pod's /dev/shm.
    #[must_use]
    pub fn shm(&self) -> PathBuf {
        self.scratch.join("shm")
    }
}
