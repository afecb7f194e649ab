//! The flags that a pod may give, each by its exact name. What is not here is refused.
//!
//! Left out of sbatch's own (Slurm 24.11), because with them a pod would
//! * stop being one job that HPK finds, follows and ends: array, cluster, clusters, cluster-constraint, comment, container,
//!   container-id, context, gid, hold, job-name, no-kill, signal, uid, wait, wrap;
//! * read or write files of the user's, or other files than HPK's: bb, bbf, chdir, error, export-file, input, nodefile,
//!   open-mode, output;
//! * change the environment that HPK starts in: export, get-user-env;
//! * make sbatch say something else than a job's id: autocomplete, help, parsable, quiet, test-only, usage, verbose, version.

use super::{Flag, Value};
use Value::{Needed, None as Nothing, Optional};

const fn flag(name: &'static str, value: Value) -> Flag {
    Flag { name, short: None, value, where_and_when: false }
}

impl Flag {
    const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }

    /// Says where or when a job runs and takes nothing more of the cluster: also on the short list.
    const fn listed(self) -> Self {
        Self { where_and_when: true, ..self }
    }
}

/// Of sbatch.
pub(super) const SBATCH: &[Flag] = &[
    flag("account", Needed).short('A').listed(),
    flag("acctg-freq", Needed),
    flag("batch", Needed),
    flag("begin", Needed).short('b').listed(),
    flag("constraint", Needed).short('C').listed(),
    flag("contiguous", Nothing),
    flag("core-spec", Needed).short('S'),
    flag("cores-per-socket", Needed),
    flag("cpu-freq", Needed),
    flag("cpus-per-gpu", Needed),
    flag("cpus-per-task", Needed).short('c'),
    flag("deadline", Needed).listed(),
    flag("delay-boot", Needed),
    flag("dependency", Needed).short('d'),
    flag("distribution", Needed).short('m'),
    flag("exclude", Needed).short('x').listed(),
    flag("exclusive", Optional),
    flag("extra", Needed),
    flag("extra-node-info", Needed).short('B'),
    flag("gpu-bind", Needed),
    flag("gpu-freq", Needed),
    flag("gpus", Needed).short('G'),
    flag("gpus-per-node", Needed),
    flag("gpus-per-socket", Needed),
    flag("gpus-per-task", Needed),
    flag("gres", Needed),
    flag("gres-flags", Needed),
    flag("hint", Needed),
    flag("kill-on-invalid-dep", Needed),
    flag("licenses", Needed).short('L'),
    flag("mail-type", Needed),
    flag("mail-user", Needed),
    flag("mcs-label", Needed),
    flag("mem", Needed),
    flag("mem-bind", Needed),
    flag("mem-per-cpu", Needed),
    flag("mem-per-gpu", Needed),
    flag("mincpus", Needed),
    flag("network", Needed),
    flag("nice", Optional).listed(),
    flag("no-requeue", Nothing).listed(),
    flag("nodelist", Needed).short('w').listed(),
    flag("nodes", Needed).short('N'),
    flag("ntasks", Needed).short('n'),
    flag("ntasks-per-core", Needed),
    flag("ntasks-per-gpu", Needed),
    flag("ntasks-per-node", Needed),
    flag("ntasks-per-socket", Needed),
    flag("oom-kill-step", Optional),
    flag("overcommit", Nothing).short('O'),
    flag("oversubscribe", Nothing).short('s'),
    flag("partition", Needed).short('p').listed(),
    flag("prefer", Needed).listed(),
    flag("priority", Needed),
    flag("profile", Needed),
    flag("propagate", Optional),
    flag("qos", Needed).short('q').listed(),
    flag("reboot", Nothing),
    flag("requeue", Nothing).listed(),
    flag("reservation", Needed).listed(),
    flag("resv-ports", Optional),
    flag("segment", Needed),
    flag("sockets-per-node", Needed),
    flag("spread-job", Nothing),
    flag("stepmgr", Nothing),
    flag("switches", Needed).listed(),
    flag("tasks-per-node", Needed),
    flag("thread-spec", Needed),
    flag("threads-per-core", Needed),
    flag("time", Needed).short('t').listed(),
    flag("time-min", Needed).listed(),
    flag("tmp", Needed),
    flag("tres-bind", Needed),
    flag("tres-per-task", Needed),
    flag("use-min-nodes", Nothing),
    flag("wait-all-nodes", Needed),
    flag("wckey", Needed).listed(),
];

/// Of srun, for the steps of a pod: how tasks are laid out and started, nothing that names a file or a program of the
/// node.
pub(super) const SRUN: &[Flag] = &[
    flag("accel-bind", Needed),
    flag("cores-per-socket", Needed),
    flag("cpu-bind", Needed),
    flag("cpu-freq", Needed),
    flag("cpus-per-gpu", Needed),
    flag("cpus-per-task", Needed).short('c'),
    flag("distribution", Needed).short('m'),
    flag("exact", Nothing),
    flag("extra-node-info", Needed).short('B'),
    flag("gpu-bind", Needed),
    flag("gpu-freq", Needed),
    flag("gpus", Needed).short('G'),
    flag("gpus-per-node", Needed),
    flag("gpus-per-socket", Needed),
    flag("gpus-per-task", Needed),
    flag("gres", Needed),
    flag("gres-flags", Needed),
    flag("hint", Needed),
    flag("kill-on-bad-exit", Optional).short('K'),
    flag("label", Nothing).short('l'),
    flag("mem", Needed),
    flag("mem-bind", Needed),
    flag("mem-per-cpu", Needed),
    flag("mem-per-gpu", Needed),
    flag("mpi", Needed),
    flag("network", Needed),
    flag("nodes", Needed).short('N'),
    flag("ntasks", Needed).short('n'),
    flag("ntasks-per-core", Needed),
    flag("ntasks-per-gpu", Needed),
    flag("ntasks-per-node", Needed),
    flag("ntasks-per-socket", Needed),
    flag("overcommit", Nothing).short('O'),
    flag("resv-ports", Optional),
    flag("sockets-per-node", Needed),
    flag("tasks-per-node", Needed),
    flag("threads-per-core", Needed),
    flag("tres-bind", Needed),
    flag("tres-per-task", Needed),
    flag("wait", Needed).short('W'),
];
