//! Gangs: pods that begin together, in one Slurm allocation with a step for each.
//!
//! ```text
//!  a pod ──claim──▶ which gang? ──▶ decide: enough members? ─▶ prepare them ─▶ all ready? ─▶ shape: places
//!                                      │                                                     │
//!                                      └─ no: Pending, "3 of 4 members are there"            └─▶ gang.json, one sbatch
//!  squeue's word of the allocation + the member's own file ──member──▶ a run of the pod's own
//! ```
//! The controller knows of all this that an attempt to prepare a pod may be held ([`Gate`]), and nothing else: for everything
//! after it, [`seam`] makes of one allocation as many runs as it has members. A run's id is `<job>/<number of the member>`.
//!
//! | module | what |
//! |---|---|
//! | [`claim`] | which gang a pod says it belongs to, and how many pods that is; pure |
//! | [`decide`] | what is done about a gang's waiting members; pure |
//! | [`split`] | which members have equal places; pure |
//! | [`shape`] | one allocation for all, or why there can be none; pure |
//! | `whole` | a gang's job, or the components of one, in Slurm's lists; pure |
//! | [`member`] | what the allocation's job and its agent's word mean for one member; pure |
//! | `registry` | all gangs and allocations, a state machine; pure |
//! | [`keeper`] | the task that owns the registry and performs what it wants |
//! | [`seam`] | the executor that the controller sees |

mod allocation;
pub(crate) mod claim;
pub(crate) mod decide;
mod heard;
pub(crate) mod keeper;
pub(crate) mod member;
mod registry;
pub(crate) mod seam;
pub(crate) mod shape;
pub(crate) mod split;
mod whole;

/// Whether an attempt to prepare a pod goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Not now: what for. The pod is looked at again when that has changed.
    Wait(String),
}

/// A member's run.
#[must_use]
pub(crate) fn run_id(job: &str, member: usize) -> String {
    format!("{job}/{member}")
}

/// The job of a member's run, and its number there. None: the run is a job of its own.
#[must_use]
pub(crate) fn parts(run: &str) -> Option<(&str, usize)> {
    let (job, member) = run.split_once('/')?;
    Some((job, member.parse().ok()?))
}
