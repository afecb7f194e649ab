//! `hpk up --in-job`: the control plane in a Slurm job instead of on the login node.
//!
//! [`submit`] sends the job and waits for it. In the job, [`run`] brings the control plane up as `hpk up` does on a login node,
//! sends a successor that starts before the job's time ends, and hands over when that one waits. [`ask`] is what other
//! commands do with a control plane that is in a job. All state is in HPK_HOME ([`record`]); the lease
//! ([`crate::supervise::lease`]) lets one of them run at a time.

pub(crate) mod ask;
pub(crate) mod record;
pub(crate) mod run;
pub(crate) mod submit;
mod turn;
