//! Names in a pod's folder, `HPK_HOME/pods/<uid>`, and below it in [`INSIDE`], which is all that the pod's own job container
//! sees.

use std::path::{Path, PathBuf};

/// The folder that is bound to [`crate::parent::POD`]: plan, status, logs, volumes and files of steps. The kubelet's record,
/// the link's credentials, the batch script and Slurm's output are beside it, out of the pod's reach.
pub const INSIDE: &str = "pod";

/// That folder of this pod's folder. Pods that an earlier version began have one for all.
#[must_use]
pub fn inside(pod: &Path) -> PathBuf {
    let inside = pod.join(INSIDE);
    // Of the pod's folder itself, whose entries no pod can make where the folder inside is.
    if inside.is_dir() || !pod.join(PLAN).is_file() { inside } else { pod.to_owned() }
}

/// Written by hpk-kubelet, beside the part that the supervisor has: its own record of the pod.
pub const RECORD: &str = "kubelet.json";
/// Written by hpk-kubelet: `hpk_api::plan::SandboxPlan`.
pub const PLAN: &str = "plan.json";
/// Written by hpk-kubelet: the sbatch script. A gang's folder has one, too.
pub const JOB_SCRIPT: &str = "job.sh";
/// Written by Slurm: output of the job outside of its containers.
pub const JOB_OUTPUT: &str = "job.out";
/// Written by hpk-pause: `hpk_api::state::PodState`, its last word.
pub const STATUS: &str = "status.json";
/// Written by hpk-kubelet: `hpk_api::link::LinkCredentials`.
pub const LINK: &str = "link.json";
/// Written by hpk-netns: `hpk_api::state::LaunchReport`.
pub const LAUNCH: &str = "launch.json";
/// Written by hpk-netns: path of [`crate::node::LINK_SOCK`] on its node.
pub const CARRIER: &str = "carrier";
/// Folder of CRI logs: `logs/<container>/<restart count>.log`.
pub const LOGS: &str = "logs";
/// Folder of volumes that the kubelet fills: `volumes/<name>/`.
pub const VOLUMES: &str = "volumes";
/// Folder of emptyDir volumes that all nodes of an MPI step see: `shared/<name>/`.
pub const SHARED: &str = "shared";

/// Written by hpk-pause for the ranks of an MPI step: `hpk_api::step::StepFile`.
#[must_use]
pub fn step(instance: u32) -> String {
    format!("step-{instance}.json")
}
