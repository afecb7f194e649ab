//! What this machine, or the allocation that the kubelet runs in, has for pods.
//!
//! Reads the kernel's files and the environment; changes nothing.

use super::queue::Size;
use crate::executor::slurm::cluster::Cluster;
use hpk_sys::cgroup::JobMemory;
use std::fs;
use std::path::Path;

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub milli_cpu: u64,
    pub memory_mib: u64,
    pub gpus: Gpus,
}

/// GPUs by the ids that programs know them by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gpus {
    /// By which variable a run is told of them.
    pub variable: &'static str,
    pub ids: Vec<String>,
}

const CUDA: &str = "CUDA_VISIBLE_DEVICES";
const ROCR: &str = "ROCR_VISIBLE_DEVICES";

impl Machine {
    /// CPUs that this process may run on (affinity and cgroup), memory up to the lowest limit above it, GPUs of the allocation
    /// or of the machine. `cpus`: so many instead.
    #[must_use]
    pub(crate) fn measure(cpus: Option<u64>) -> Self {
        let found = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let cpus = cpus.unwrap_or(found);
        let installed = memory_mib(&fs::read_to_string("/proc/meminfo").unwrap_or_default()).unwrap_or(0);
        let bound = JobMemory::find().and_then(|job| job.limit()).map(|bytes| bytes >> 20);
        let variable = |name: &str| std::env::var(name).ok();
        let allocated = variable("SLURM_MEM_PER_NODE").and_then(|text| text.parse().ok()).filter(|mib: &u64| *mib > 0);
        Self {
            milli_cpu: cpus.saturating_mul(1000),
            memory_mib: [Some(installed), bound, allocated].into_iter().flatten().min().unwrap_or(0),
            gpus: Gpus::find(Path::new("/dev"), variable),
        }
    }

    /// All of it.
    #[must_use]
    pub(crate) fn size(&self) -> Size {
        Size { milli_cpu: self.milli_cpu, memory_mib: self.memory_mib, gpus: self.gpus.ids.len() as u64 }
    }

    /// As the Node shows it.
    #[must_use]
    pub(crate) fn cluster(&self) -> Cluster {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Cluster::one(host, self.milli_cpu / 1000, self.memory_mib, self.gpus.ids.len() as u64)
    }
}

impl Gpus {
    /// `dev`: the folder of devices. An allocation's own variable, even an empty one, says all; else the devices are counted.
    fn find(dev: &Path, variable: impl Fn(&str) -> Option<String>) -> Self {
        let given = [CUDA, ROCR].into_iter().find_map(|name| Some((name, variable(name)?)));
        if let Some((name, list)) = given {
            let ids = list.split(',').map(str::trim).filter(|id| !id.is_empty() && *id != "NoDevFiles");
            return Self { variable: name, ids: ids.map(str::to_owned).collect() };
        }
        let counted = |folder: &Path, prefix: &str| {
            let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
            let numbered = names.filter(|name| {
                let number = name.to_str().and_then(|n| n.strip_prefix(prefix));
                number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
            });
            numbered.count()
        };
        let (variable, count) = match counted(dev, "nvidia") {
            0 if dev.join("kfd").exists() => (ROCR, counted(&dev.join("dri"), "renderD")),
            count => (CUDA, count),
        };
        Self { variable, ids: (0..count).map(|number| number.to_string()).collect() }
    }
}

/// MemTotal of /proc/meminfo.
fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        assert_eq!(memory_mib("MemTotal:        2048000 kB\nMemFree: 1 kB\n"), Some(2000));
        assert_eq!(memory_mib("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn gpus_of_the_allocation_else_of_the_machine() {
        let dev = tempfile::tempdir().unwrap();
        let none = |_: &str| None;
        assert!(Gpus::find(dev.path(), none).ids.is_empty());
        for name in ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"] {
            fs::write(dev.path().join(name), "").unwrap();
        }
        let found = Gpus::find(dev.path(), none);
        assert_eq!((found.variable, found.ids), (CUDA, vec!["0".to_owned(), "1".to_owned()]));
        let one = |name: &str| (name == CUDA).then(|| "GPU-8f, 3".to_owned());
        assert_eq!(Gpus::find(dev.path(), one).ids, ["GPU-8f", "3"]);
        let empty = |name: &str| (name == CUDA).then(String::new);
        assert!(Gpus::find(dev.path(), empty).ids.is_empty(), "an allocation without");
    }
}
