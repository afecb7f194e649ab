//! What Slurm and the compute nodes say about pods.

use crate::command::sx;
use crate::local;

/// A job as `squeue` or `sacct` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Slurm's job id.
    pub id: String,
    /// `<namespace>/<pod>`.
    pub name: String,
    /// RUNNING, PENDING, …
    pub state: String,
    /// CPUs of the job.
    pub cpus: String,
    /// Memory as Slurm writes it (`64M`).
    pub memory: String,
    /// The node it runs on, empty while it waits.
    pub node: String,
    /// Holds the pod's UID.
    pub comment: String,
}

fn parse(line: &str) -> Option<Job> {
    let mut fields = line.split('|').map(|f| f.trim().to_owned());
    Some(Job {
        id: fields.next()?,
        name: fields.next()?,
        state: fields.next()?,
        cpus: fields.next()?,
        memory: fields.next()?,
        node: fields.next()?,
        comment: fields.next()?,
    })
}

/// All jobs in the queue.
#[track_caller]
pub fn jobs() -> Vec<Job> {
    let run = sx("login", Some("alice"), &["squeue", "-h", "-o", "%i|%j|%T|%C|%m|%N|%k"]);
    run.ok().lines().filter_map(parse).collect()
}

/// The job in the queue whose name is `<namespace>/<pod>`; without a site the run of that pod.
#[track_caller]
pub fn job_of(namespace: &str, pod: &str) -> Option<Job> {
    if cfg!(feature = "site") { queued(namespace, pod) } else { local::run_of(namespace, pod) }
}

#[track_caller]
fn queued(namespace: &str, pod: &str) -> Option<Job> {
    let name = format!("{namespace}/{pod}");
    jobs().into_iter().find(|job| job.name == name)
}

/// All jobs of the name `<namespace>/<pod>` that accounting knows; without a site the runs of that pod.
#[track_caller]
pub fn sacct(namespace: &str, pod: &str) -> Vec<Job> {
    if !cfg!(feature = "site") {
        return local::runs_of(namespace, pod);
    }
    let name = format!("{namespace}/{pod}");
    let format = "--format=jobid,jobname,state,alloccpus,reqmem,nodelist,comment";
    let run = sx("login", Some("alice"), &["sacct", "-X", "-n", "-P", "--delimiter=|", "--name", &name, format]);
    run.ok().lines().filter_map(parse).collect()
}

/// Processes on a node whose command line holds `text`: `pid args`, one a line.
#[track_caller]
pub fn processes(node: &str, text: &str) -> Vec<String> {
    let run = sx(node, None, &["ps", "-e", "-ww", "-o", "pid=,args="]);
    run.ok().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}
