//! What the end-to-end cases are written with: commands in the site's nodes, kubectl as alice, and waiting
//! for what the API server or Slurm says. The cases in `tests/` read like a user's manual.
//!
//! The site must be up (`make site-up`); every case fails at once, saying so, when it is not. Without the feature `site` the
//! cases run on one machine with the local executor instead (`make fast`), and those about Slurm are ignored. Nothing here
//! sleeps: waiting is `kubectl wait`, a watch read line by line, or a command tried again until a deadline
//! (only where the other side, Slurm, offers nothing to wait on).
#![allow(clippy::panic, reason = "a failed helper is a failed case")]

mod cluster;
mod command;
mod local;
mod namespace;
mod ranks;
mod slurm;
mod terminal;
mod watch;

pub use cluster::{Cluster, programs};
pub use command::{Run, kubectl, kubectl_with_input, node_pid, sx};
pub use namespace::Namespace;
pub use ranks::{four_ranks, ranks, sorted};
pub use slurm::{Filler, Job, job_of, jobs, jobs_of, processes, sacct};
pub use terminal::{Step, at_terminal};
pub use watch::{eventually, until};

use std::time::Duration;

/// The node's name on this site: `hpk-` and Slurm's cluster name.
pub const NODE: &str = "hpk-site";
/// The home folder of alice, who has the cluster.
pub const HOME: &str = "/home/alice";
/// Her `HPK_HOME`.
pub const HPK_HOME: &str = "/home/alice/.hpk";
/// Where her pods have their folders on a compute node, by their UIDs.
pub const NODE_FOLDER: &str = "/tmp/hpk-1000";
/// How long a pod may take to do something simple on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The smallest image: busybox.
pub const BUSYBOX: &str = "login:5000/busybox:1";
/// The image with tools: bash, python3, curl, Open MPI.
pub const TOOLBOX: &str = "login:5000/toolbox:1";
/// The image with three MPI libraries and what judges them.
pub const MPI: &str = "login:5000/mpi:1";
