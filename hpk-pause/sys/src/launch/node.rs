//! What is known of the node and the pod's namespaces before the first launch.

use crate::caps;
use crate::error::LaunchError;
use crate::ids::Ids;
use nix::errno::Errno;
use std::path::{Path, PathBuf};

/// Nodes that every container gets where the parent has them, as container engines give them; the last ones are GPUs and fast
/// networks.
const DEVICES: [&str; 14] = [
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "fuse",
    "net/tun",
    "dri",
    "kfd",
    "infiniband",
    "xpmem",
    "knem",
    "gdrdrv",
];
/// How the names of further ones begin: GPUs, Slingshot and Omni-Path adapters.
const NUMBERED: [&str; 3] = ["nvidia", "cxi", "hfi1"];
/// Where Apptainer's --nv and --rocm put libraries, in the parent and so in its containers.
const GPU_LIBS: &str = "/.singularity.d/libs";
/// Programs that Apptainer's --nv and --rocm bring (nvliblist.conf, rocmliblist.conf), below /usr/bin.
const GPU_TOOLS: [&str; 7] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "rocm-smi",
    "rocminfo",
];

/// Paths that container engines hide (containerd, moby: `DefaultSpec`).
pub(crate) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Where the parent container has what it hands on.
#[derive(Clone, Debug)]
pub struct Places {
    /// Device nodes.
    pub dev: PathBuf,
    /// Libraries of GPUs.
    pub gpu_libs: PathBuf,
    /// Programs of GPUs.
    pub gpu_tools: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { dev: "/dev".into(), gpu_libs: GPU_LIBS.into(), gpu_tools: "/usr/bin".into() }
    }
}

/// A file or folder that containers get where they look for it.
#[derive(Clone, Debug)]
pub(crate) struct Handed {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) folder: bool,
}

impl Handed {
    /// None: there is no such file.
    fn look(source: PathBuf, target: String) -> Option<Self> {
        let folder = std::fs::metadata(&source).ok()?.is_dir();
        Some(Self { source, target, folder })
    }
}

/// The node as the launcher sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) ids: Ids,
    /// Below /dev, in the order in which they are bound.
    pub(crate) devices: Vec<Handed>,
    /// The supervisor's own permitted capabilities.
    pub(crate) permitted: u64,
    /// Highest capability that the kernel knows.
    pub(crate) last_cap: u8,
    /// Libraries and programs of GPUs.
    pub(crate) gpu: Vec<Handed>,
    /// For LD_LIBRARY_PATH.
    pub(crate) gpu_libs: Option<String>,
    /// Which of the paths that are hidden are folders.
    pub(crate) masked_folders: Vec<&'static str>,
    /// What children are born with, see [`crate::signals::ignored`].
    pub(crate) ignored_signals: u64,
    /// mount_setattr(2) is there (5.12), and with it detached mounts.
    pub(crate) mount_setattr: bool,
    /// Mount points below /sys, where mount_setattr is missing.
    pub(crate) below_sys: Vec<String>,
}

impl Node {
    pub(crate) fn look(places: Places) -> Result<Self, LaunchError> {
        let ids = Ids::of_self().map_err(|e| LaunchError::Resources {
            what: "read /proc/self/uid_map",
            errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
        })?;
        let mount_setattr = crate::mounts::has_mount_setattr();
        let libs = std::fs::read_dir(&places.gpu_libs).is_ok_and(|mut entries| entries.next().is_some());
        Ok(Self {
            ids,
            devices: devices(&places.dev),
            permitted: caps::permitted(),
            last_cap: caps::last(),
            gpu: if libs { gpu(&places) } else { Vec::new() },
            gpu_libs: libs.then(|| GPU_LIBS.to_owned()),
            masked_folders: MASKED.into_iter().filter(|path| Path::new(path).is_dir()).collect(),
            ignored_signals: crate::signals::ignored(),
            mount_setattr,
            below_sys: if mount_setattr { Vec::new() } else { below_sys() },
        })
    }
}

/// Of those whose names need no escapes, as all of the kernel's own.
fn below_sys() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with("/sys/") && !point.contains('\\')).map(str::to_owned).collect()
}

fn devices(dev: &Path) -> Vec<Handed> {
    let mut names: Vec<String> = DEVICES.iter().map(|&name| name.to_owned()).collect();
    if let Ok(entries) = std::fs::read_dir(dev) {
        let all = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.extend(all.filter(|name| NUMBERED.iter().any(|begin| name.starts_with(begin))));
    }
    let handed = names.into_iter().filter_map(|name| Handed::look(dev.join(&name), format!("/dev/{name}")));
    handed.collect()
}

fn gpu(places: &Places) -> Vec<Handed> {
    let libs = Handed::look(places.gpu_libs.clone(), GPU_LIBS.to_owned());
    let tools =
        GPU_TOOLS.iter().filter_map(|name| Handed::look(places.gpu_tools.join(name), format!("/usr/bin/{name}")));
    libs.into_iter().chain(tools).collect()
}
