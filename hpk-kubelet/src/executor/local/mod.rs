//! Pods on this machine, without Slurm: a laptop, a workstation, one interactive allocation.
//!
//! ```text
//!  Local (the seam) ── messages ──▶ runner: a thread, the one owner ──▶ sh job.sh ─▶ hpk-netns run ─▶ …
//!                                     │ queue: whose turn it is           in a session of its own; goes on
//!                                     └ record: HPK_HOME/runs/<id>        when the kubelet ends
//! ```
//! Pure: [`queue`] and [`needs`]. [`machine`], [`cgroup`], [`processes`] and [`record`] are edges: the kernel's files, and ours.

pub(crate) mod cgroup;
pub(crate) mod machine;
pub(crate) mod needs;
pub(crate) mod processes;
pub(crate) mod queue;
pub(crate) mod record;
pub(crate) mod runner;

use super::run::Run;
use super::slurm::cluster::Cluster;
use super::slurm::limits::Site;
use super::words::{self, Kind, Words};
use super::{Answer, AskError, Asked, Asking, Executor, ExecutorError, Made, Past, Submission, Times};
use hpk_api::pod_flags;
use hpk_layout::Home;
use machine::Machine;
use runner::{KILL_WAIT_SECONDS, Message, Refused, Runner};
use std::io;
use std::path::Path;
use std::process::Stdio;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};

/// Seconds within which a lost submission would show: it is written down before it is answered.
const SUBMISSION: u32 = 1;

/// This machine as an executor.
#[derive(Debug)]
pub(crate) struct Local {
    tell: mpsc::UnboundedSender<Message>,
    news: watch::Receiver<u64>,
    cgroups: cgroup::Cgroups,
    /// What the user said that there is.
    cpus: Option<u64>,
}

impl From<Refused> for ExecutorError {
    fn from(error: Refused) -> Self {
        let is_transient = matches!(error, Refused::Io(_) | Refused::Gone);
        // Nothing runs that is not written down.
        Self::new(error, is_transient, true)
    }
}

impl Local {
    /// Starts the thread. `cpus`: what pods may ask for; None: those that
    /// there are. `open_files`: soft limit of open files for runs, where it is not our own. To be
    /// called in the runtime.
    ///
    /// # Errors
    /// It cannot be told which runs there are.
    pub(crate) fn start(home: &Home, cpus: Option<u64>, open_files: Option<u64>) -> io::Result<Self> {
        let cgroups = cgroup::Cgroups::find();
        tracing::info!(?cgroups, "pods run on this machine");
        let (tell, told) = mpsc::unbounded_channel();
        let (news, heard) = watch::channel(0);
        let runner = Runner::new(home, Machine::measure(cpus), cgroups.clone(), open_files, tell.clone(), news)?;
        std::thread::Builder::new().name("local executor".to_owned()).spawn(move || runner.work(told))?;
        Ok(Self { tell, news: heard, cgroups, cpus })
    }

    fn tell(&self, message: Message) -> Result<(), ExecutorError> {
        self.tell.send(message).map_err(|_| Refused::Gone.into())
    }

    /// What of a pod has no effect here, and what it takes.
    fn warnings(&self, asking: &Asking<'_>, needs: &needs::Needs, unknown: &[String]) -> Vec<(&'static str, String)> {
        let mut list = Vec::new();
        let mut tell = |text: String| list.push(("Unsupported", text));
        let annotations = asking.pod.metadata.annotations.as_ref();
        for name in [pod_flags::OLD_FLAGS, pod_flags::FLAGS] {
            if annotations.is_some_and(|a| a.contains_key(name)) {
                tell(format!(
                    "metadata.annotations[{name}] has no effect: this cluster runs pods on one machine without Slurm \
                     (hpk up --executor local)"
                ));
            }
        }
        for name in unknown {
            tell(format!("resource {name}: this machine has none that is known"));
        }
        let limited = needs.limits != needs::Limits::default();
        if limited && self.cgroups == cgroup::Cgroups::Nobody {
            tell(
                "resources.limits of CPUs and memory are not kept: this user has no cgroup on this machine (systemd's user \
                 session, or one that was delegated); hpk doctor tells more"
                    .to_owned(),
            );
        }
        list
    }
}

/// An MPI step, which Slurm alone can start.
#[derive(Debug, thiserror::Error)]
#[error(
    "metadata.annotations[{}]: an MPI step is started by Slurm, and this cluster runs pods without it (hpk up --executor local); remove the annotation and start the program by mpirun",
    pod_flags::MPI_FLAGS
)]
struct NoStep;

impl Executor for Local {
    fn words(&self) -> &'static Words {
        words::of(Kind::Local)
    }

    fn news(&self) -> Option<watch::Receiver<u64>> {
        Some(self.news.clone())
    }

    fn ask(&self, asking: &Asking<'_>) -> Result<Asked, AskError> {
        let annotations = asking.pod.metadata.annotations.as_ref();
        if annotations.is_some_and(|a| a.contains_key(pod_flags::MPI_FLAGS)) {
            return Err(NoStep.into());
        }
        let (needs, unknown) = needs::needs(asking.pod, asking.defaults);
        let arguments = needs.words();
        let asked = arguments.join(" ");
        Ok(Asked { warnings: self.warnings(asking, &needs, &unknown), arguments, asked })
    }

    fn submit<'a>(&'a self, submission: Submission<'a>) -> Answer<'a, Made> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.tell(Message::Submit {
                pod: submission.uid.to_string(),
                asked: submission.arguments.to_vec(),
                script: submission.script.to_owned(),
                reply,
            })?;
            let id = answer.await.unwrap_or(Err(Refused::Gone))?;
            Ok(Made { id: id.to_string(), said: String::new() })
        })
    }

    fn query<'a>(&'a self, ids: Option<&'a [String]>) -> Answer<'a, Vec<Run>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.tell(Message::Query { ids: ids.map(<[String]>::to_vec), reply })?;
            answer.await.map_err(|_| Refused::Gone.into())
        })
    }

    fn remembered<'a>(&'a self, _: Past<'a>) -> Answer<'a, Option<Vec<Run>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn cancel<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(self.tell(Message::Cancel { id: id.to_owned() })))
    }

    fn terminate<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(std::future::ready(self.tell(Message::Terminate { id: id.to_owned() })))
    }

    fn step(&self, _: &str, netns: &Path, folder: &Path) -> Result<Child, ExecutorError> {
        let mut command = Command::new(netns);
        command.arg("carry").arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).spawn().map_err(|error| Refused::Io(error).into())
    }

    fn cluster(&self) -> Answer<'_, Cluster> {
        let machine = Machine::measure(self.cpus);
        let cluster = machine.cluster();
        Box::pin(std::future::ready(self.tell(Message::Machine(machine)).map(|()| cluster)))
    }

    fn site(&self) -> Answer<'_, Option<Site>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn times(&self) -> Answer<'_, Times> {
        let times = Times { kill_wait: Some(KILL_WAIT_SECONDS), message_timeout: Some(SUBMISSION) };
        Box::pin(std::future::ready(Ok(times)))
    }
}
