//! What of the node's /dev the parent container is given beside Apptainer's few nodes, and whether it is to bring the
//! libraries of GPUs. Pure: [`Devices::choose`] is told what exists.
//!
//! Slurm decides which GPUs a job may use (its cgroup) and says so in the job's environment; a job without one is not given
//! any GPU's node or library.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Variables by which Slurm tells a job of its GPUs (slurm.conf(5), gres).
const GPU_VARIABLES: [&str; 6] = [
    "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
];

/// Of these the containers are told too: programs number their devices by them.
pub(crate) const PASSED_ON: [&str; 6] = [
    // The supervisor: which device nodes are which container's.
    "SLURM_JOB_GPUS",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
];

/// Nodes that every pod gets where the node has them: Apptainer's own /dev lacks the first, the others are RDMA and what
/// MPI libraries copy memory by.
const ALWAYS: [&str; 5] = ["/dev/full", "/dev/infiniband", "/dev/xpmem", "/dev/knem", "/dev/gdrdrv"];
/// Adapters of Slingshot and Omni-Path, numbered from 0.
const ADAPTERS: [&str; 3] = ["/dev/cxi", "/dev/hfi1_", "/dev/hfi1"];
/// Most adapters of a node that are looked for.
const MOST: usize = 16;

/// Flags and binds of the parent container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    /// Bound where they are.
    pub(crate) binds: Vec<PathBuf>,
    /// `--nv`, `--rocm`.
    pub(crate) flags: Vec<&'static str>,
}

impl Devices {
    /// `exists`: of a path on the node. `variable`: of the job's environment. `tun`: the pod's network needs it.
    pub(crate) fn choose<'a>(
        tun: bool,
        exists: impl Fn(&Path) -> bool,
        variable: impl Fn(&str) -> Option<&'a OsStr>,
    ) -> Self {
        let mut devices = Self::default();
        let mut bind = |path: &str| {
            let there = exists(Path::new(path));
            if there {
                devices.binds.push(path.into());
            }
            there
        };
        if tun {
            bind("/dev/net/tun");
        }
        for path in ALWAYS {
            bind(path);
        }
        for adapter in ADAPTERS {
            let _ = (0..MOST).take_while(|number| bind(&format!("{adapter}{number}"))).count();
        }
        // A job without GPUs on a node with some: an empty value, or this word.
        let given = |name: &str| variable(name).is_some_and(|value| !value.is_empty() && value != "NoDevFiles");
        if !GPU_VARIABLES.iter().any(|name| given(name)) {
            return devices;
        }
        if exists(Path::new("/dev/nvidiactl")) {
            devices.flags.push("--nv");
        }
        if exists(Path::new("/dev/kfd")) {
            // Brings /dev/kfd and /dev/dri itself.
            devices.flags.push("--rocm");
        } else {
            bind("/dev/dri");
        }
        devices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(nodes: &[&str], env: &[(&str, &'static str)]) -> (Vec<String>, Vec<&'static str>) {
        let variable = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| OsStr::new(*v));
        let chosen = Devices::choose(true, |path| nodes.iter().any(|n| Path::new(n) == path), variable);
        (chosen.binds.iter().map(|b| b.display().to_string()).collect(), chosen.flags)
    }

    #[test]
    fn a_gpu_is_brought_to_jobs_that_were_given_one() {
        let node = ["/dev/full", "/dev/net/tun", "/dev/nvidiactl", "/dev/dri", "/dev/infiniband"];
        let usual = vec!["/dev/net/tun".to_owned(), "/dev/full".to_owned(), "/dev/infiniband".to_owned()];
        assert_eq!(choose(&node, &[]), (usual.clone(), vec![]));
        for none in ["", "NoDevFiles"] {
            assert_eq!(choose(&node, &[("CUDA_VISIBLE_DEVICES", none)]), (usual.clone(), vec![]));
        }
        let with_dri = [usual.clone(), vec!["/dev/dri".to_owned()]].concat();
        assert_eq!(choose(&node, &[("SLURM_JOB_GPUS", "0")]), (with_dri, vec!["--nv"]));
        let amd = ["/dev/full", "/dev/kfd", "/dev/dri"];
        assert_eq!(choose(&amd, &[("ROCR_VISIBLE_DEVICES", "0,1")]), (vec!["/dev/full".to_owned()], vec!["--rocm"]));
        assert_eq!(choose(&[], &[("SLURM_JOB_GPUS", "0")]), (vec![], vec![]));
    }
}
