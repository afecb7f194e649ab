//! What a rank's command gets of the job's environment, beside its container's own. Pure.

use std::path::PathBuf;

/// Names that begin so are facts of the step: they win over the container's.
const FACTS: [&str; 4] = ["SLURM_", "SLURMD_", "PMIX_", "PMI_"];
/// Names that begin so are settings of MPI libraries and fabrics: the container's own win.
const SETTINGS: [&str; 9] = ["UCX_", "FI_", "OMPI_", "PRTE_", "I_MPI_", "MPICH_", "SLINGSHOT_", "MV2_", "PSM"];
/// Of GPUs, by which programs number them; Slurm sets them for each step.
const DEVICES: [&str; 5] = [
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "GPU_DEVICE_ORDINAL",
];

/// Open MPI's tcp transport ends a job where some nodes have IPv6 and others have not ("Unable to find reachable pairing").
const ONE_FAMILY: (&str, &str) = ("OMPI_MCA_btl_tcp_disable_family", "6");

/// How a rank shows PMIx's server who it is. The server would take munge as well, and an image without it says at length that
/// it has none. By `native` it is the uid, which is a rank's own unless it is root.
const BY_UID: (&str, &str) = ("PMIX_MCA_psec", "native");

/// What NVIDIA's container tools and some libraries go by. Slurm does not set it, and images set it to `all`.
const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";

/// The environment of a rank's command. `job`: of the process that Slurm has started; `nodes`: of the step; `root`: the rank is.
pub(crate) fn environment(
    container: &[(String, String)],
    job: impl Iterator<Item = (String, String)>,
    nodes: u32,
    root: bool,
) -> Vec<(String, String)> {
    let begins = |name: &str, with: &[&str]| with.iter().any(|begin| name.starts_with(begin));
    let job: Vec<(String, String)> = job.collect();
    let cuda = job.iter().find(|(name, _)| name == "CUDA_VISIBLE_DEVICES").map(|(_, value)| value.clone());
    let cuda = cuda.filter(|value| !value.is_empty() && value != "NoDevFiles");
    let counts = |name: &str, value: &str| name != NVIDIA || value != "all" || cuda.is_none();
    let mut env: Vec<_> = container.iter().filter(|(name, value)| counts(name, value)).cloned().collect();
    let names: Vec<String> = env.iter().map(|(name, _)| name.clone()).collect();
    let own = |name: &str| names.iter().any(|known| known == name);
    // First, so that a site that sets it wins.
    env.extend(cuda.filter(|_| !own(NVIDIA)).map(|value| (NVIDIA.to_owned(), value)));
    for (name, value) in job {
        let setting = begins(&name, &SETTINGS) || DEVICES.contains(&name.as_str());
        if begins(&name, &FACTS) || (setting && !own(&name)) {
            env.push((name, value));
        }
    }
    let modes = env.iter().rev().find(|(name, _)| name == "PMIX_SECURITY_MODE").map(|(_, modes)| modes.as_str());
    let native = modes.is_some_and(|modes| modes.split(',').any(|mode| mode == BY_UID.1));
    if native && !root && !env.iter().any(|(name, _)| name == BY_UID.0) {
        env.push((BY_UID.0.to_owned(), BY_UID.1.to_owned()));
    }
    if nodes > 1 && !env.iter().any(|(name, _)| name == ONE_FAMILY.0) {
        env.push((ONE_FAMILY.0.to_owned(), ONE_FAMILY.1.to_owned()));
    }
    env
}

/// Folders that PMIx's server on this node shares with its clients, where it may have them.
pub(crate) fn folders<'a>(variable: impl Fn(&str) -> Option<&'a str>, uid: u32) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = variable("PMIX_SERVER_TMPDIR").map(PathBuf::from).into_iter().collect();
    if let (Some(job), Some(step)) = (variable("SLURM_JOB_ID"), variable("SLURM_STEP_ID")) {
        let bases = ["SLURM_PMIX_TMPDIR", "PMIX_SYSTEM_TMPDIR", "TMPDIR"].map(&variable);
        for base in bases.into_iter().flatten().chain(["/tmp"]) {
            let folder = PathBuf::from(base).join(format!("spmix_appdir_{uid}_{job}.{step}"));
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders.retain(|folder| folder.is_absolute());
    folders
}

/// The descriptor by which a client of PMI-1 and PMI-2 speaks to Slurm.
pub(crate) fn pmi_descriptor<'a>(variable: impl Fn(&str) -> Option<&'a str>) -> Option<i32> {
    variable("PMI_FD")?.parse().ok().filter(|fd| *fd > 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn facts_win_and_settings_give_way() {
        let own = pairs(&[("PATH", "/bin"), ("UCX_TLS", "tcp"), ("SLURM_JOB_ID", "forged")]);
        let job = [
            ("SLURM_JOB_ID", "7"),
            ("PMIX_RANK", "0"),
            ("UCX_TLS", "all"),
            ("FI_PROVIDER", "cxi"),
            ("HOME", "/root"),
            ("PATH", "/x"),
        ];
        let env = environment(&own, pairs(&job).into_iter(), 1, false);
        let last = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(last("SLURM_JOB_ID"), Some("7"));
        assert_eq!(last("UCX_TLS"), Some("tcp"));
        assert_eq!(
            (last("FI_PROVIDER"), last("PMIX_RANK"), last("PATH"), last("HOME")),
            (Some("cxi"), Some("0"), Some("/bin"), None)
        );
        assert_eq!(last(ONE_FAMILY.0), None);
    }

    #[test]
    fn a_rank_sees_the_gpus_that_slurm_gives_it() {
        let seen = |own: &[(&str, &str)], job: &[(&str, &str)]| {
            let env = environment(&pairs(own), pairs(job).into_iter(), 1, false);
            let last = |name: &str| env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.clone());
            (last("CUDA_VISIBLE_DEVICES"), last(NVIDIA))
        };
        let said = |cuda: &str, nvidia: &str| (Some(cuda.to_owned()), Some(nvidia.to_owned()));
        assert_eq!(seen(&[(NVIDIA, "all")], &[("CUDA_VISIBLE_DEVICES", "1")]), said("1", "1"), "of an image");
        assert_eq!(seen(&[], &[("CUDA_VISIBLE_DEVICES", "1")]), said("1", "1"));
        assert_eq!(seen(&[(NVIDIA, "0")], &[("CUDA_VISIBLE_DEVICES", "1")]), said("1", "0"), "the pod's own");
        assert_eq!(seen(&[("CUDA_VISIBLE_DEVICES", "3")], &[("CUDA_VISIBLE_DEVICES", "1")]).0, Some("3".to_owned()));
        assert_eq!(seen(&[], &[("CUDA_VISIBLE_DEVICES", "NoDevFiles")]).1, None);
    }

    #[test]
    fn one_family_where_the_step_has_several_nodes() {
        let env = environment(&[], std::iter::empty(), 2, false);
        assert_eq!(env, pairs(&[ONE_FAMILY]));
        let own = pairs(&[(ONE_FAMILY.0, "4")]);
        assert_eq!(environment(&own, std::iter::empty(), 2, false), own);
    }

    #[test]
    fn who_a_rank_is_goes_by_its_uid() {
        let by = |modes: &str, own: &[(&str, &str)], root| {
            let job = pairs(&[("PMIX_SECURITY_MODE", modes)]).into_iter();
            let env = environment(&pairs(own), job, 1, root);
            env.iter().rev().find(|(name, _)| name == BY_UID.0).map(|(_, value)| value.clone())
        };
        assert_eq!(by("munge,native", &[], false).as_deref(), Some("native"));
        assert_eq!(by("munge,native", &[], true), None);
        assert_eq!(by("munge", &[], false), None);
        assert_eq!(by("munge,native", &[(BY_UID.0, "munge")], false).as_deref(), Some("munge"));
    }

    #[test]
    fn folders_of_pmix() {
        let variable = |name: &str| match name {
            "PMIX_SERVER_TMPDIR" => Some("/var/spool/slurm/d/pmix.1.0/"),
            "SLURM_JOB_ID" => Some("1"),
            "SLURM_STEP_ID" => Some("0"),
            "PMIX_SYSTEM_TMPDIR" => Some("/tmp"),
            _ => None,
        };
        let want: Vec<PathBuf> = vec!["/var/spool/slurm/d/pmix.1.0/".into(), "/tmp/spmix_appdir_1000_1.0".into()];
        assert_eq!(folders(variable, 1000), want);
        assert_eq!(folders(|_| None, 1000), Vec::<PathBuf>::new());
        assert_eq!(pmi_descriptor(|_| Some("16")), Some(16));
        assert_eq!(pmi_descriptor(|_| Some("1")), None);
    }
}
