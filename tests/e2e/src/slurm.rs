//! What Slurm and the compute nodes say about pods.

use crate::command::sx;
use crate::local;
use crate::watch::eventually;

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

/// Those of a namespace's pods.
#[track_caller]
pub fn jobs_of(namespace: &str) -> Vec<Job> {
    jobs().into_iter().filter(|job| job.name.starts_with(&format!("{namespace}/"))).collect()
}

/// A job that fills the site until this is dropped, whatever becomes of the case.
#[derive(Debug)]
pub struct Filler(String);

impl Filler {
    /// Takes all CPUs of the site but two on each of its two nodes, and waits until it has them.
    #[track_caller]
    pub fn but_two_cpus_on_each_node() -> Self {
        Self::but_cpus_on_each_node(2)
    }

    /// Takes all CPUs of the site but so many on each of its two nodes, and waits until it has them: pods that run need room.
    #[track_caller]
    pub fn but_cpus_on_each_node(left: u32) -> Self {
        let cpus = format!("-c{}", 64 - left);
        let size = ["-N2", "-n2", "--ntasks-per-node=1", &cpus, "--mem=100"];
        let command: Vec<&str> =
            ["sbatch", "--parsable"].into_iter().chain(size).chain(["-o/dev/null", "--wrap=sleep 900"]).collect();
        let filler = Self(sx("login", Some("alice"), &command).ok().trim().to_owned());
        let runs = || jobs().into_iter().find(|job| job.id == filler.0 && job.state == "RUNNING");
        eventually("a job that fills the site runs", crate::PATIENCE, runs);
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        sx("login", Some("alice"), &["scancel", &self.0]);
    }
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
