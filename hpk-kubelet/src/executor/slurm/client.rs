//! Runs Slurm's commands. Each call is one command with a time limit and a small clean environment.

use super::cluster::{self, Cluster};
use super::error::SlurmError;
use super::job;
use super::limits::Site;
use super::waiting::Reservation;
use crate::executor::environment::inherited;
use crate::executor::run::Run;
use crate::executor::{Made, Times};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};

/// Slurm's client commands.
#[derive(Clone, Debug)]
pub struct Client {
    sbatch: PathBuf,
    squeue: PathBuf,
    sacct: Option<PathBuf>,
    scancel: PathBuf,
    sinfo: PathBuf,
    scontrol: Option<PathBuf>,
    /// Needed by the link's carrier of last resort only.
    srun: Option<PathBuf>,
    /// Soft limit of open files that jobs are to have, where it is not our own.
    open_files: Option<u64>,
}

/// A part of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// None: the first.
    pub node: Option<String>,
    /// Of a heterogeneous job: the number of the component.
    pub component: Option<u32>,
}

/// slurmctld may be busy for a while; longer than its own MessageTimeout.
const LIMIT: Duration = Duration::from_secs(60);

impl Client {
    /// Finds the commands in PATH. sacct is optional: sites without accounting have none.
    ///
    /// # Errors
    /// A missing command.
    pub fn find() -> Result<Self, SlurmError> {
        let find = |command: &'static str| which::which(command).map_err(|_| SlurmError::NotFound { command });
        Ok(Self {
            sbatch: find("sbatch")?,
            squeue: find("squeue")?,
            sacct: which::which("sacct").ok(),
            scancel: find("scancel")?,
            sinfo: find("sinfo")?,
            scontrol: which::which("scontrol").ok(),
            srun: which::which("srun").ok(),
            open_files: None,
        })
    }

    /// Jobs get this soft limit of open files in place of our own: sbatch hands on the limits that it has.
    #[must_use]
    pub fn with_open_files(self, open_files: Option<u64>) -> Self {
        Self { open_files, ..self }
    }

    /// Submits a script.
    ///
    /// # Errors
    /// sbatch's own message.
    pub async fn submit(&self, arguments: &[String], script: &Path) -> Result<Made, SlurmError> {
        let mut command = match self.open_files {
            None => Command::new(&self.sbatch),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "ulimit -Sn \"$0\"; exec \"$@\"", &limit.to_string()]).arg(&self.sbatch);
                shell
            }
        };
        command.args(arguments).arg(script);
        let output = outcome("sbatch", command).await?;
        let text = String::from_utf8_lossy(&output.stdout);
        // `--parsable` prints `id` or `id;cluster`, after whatever a submit plug-in says.
        let id = text.lines().rev().find_map(|l| l.trim().split(';').next().filter(|i| i.parse::<u64>().is_ok()));
        match id {
            Some(id) => Ok(Made { id: id.to_owned(), said: words("sbatch", &String::from_utf8_lossy(&output.stderr)) }),
            None => {
                let message = format!("gave no job id but {:?}", text.trim());
                Err(SlurmError::Refused { command: "sbatch", message })
            }
        }
    }

    /// The given jobs as far as squeue knows them; all of the user's when `ids` is None.
    ///
    /// # Errors
    /// squeue failed (an unknown id is no failure).
    pub async fn queue(&self, ids: Option<&[String]>) -> Result<Vec<Run>, SlurmError> {
        let mut command = Command::new(&self.squeue);
        command.args(["--json", "--states=all"]);
        match ids {
            // Beyond this the list itself is dearer than the user's other jobs.
            Some(ids) if ids.len() <= 500 => command.arg(format!("--jobs={}", ids.join(","))),
            _ => command.arg("--me"),
        };
        match run("squeue", command).await {
            Ok(output) => {
                let queue = job::Queue::parse(&output)?;
                let reservations = if queue.concerns_reservations() { self.reservations().await } else { Vec::new() };
                Ok(queue.runs(&reservations, Timestamp::now()))
            }
            // What squeue says when none of the ids is known any more.
            Err(SlurmError::Refused { message, .. }) if message.contains("Invalid job id") => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Reservations, for people: without them less is said of why jobs wait.
    async fn reservations(&self) -> Vec<Reservation> {
        let Some(scontrol) = &self.scontrol else { return Vec::new() };
        let mut command = Command::new(scontrol);
        command.args(["show", "reservation", "--json"]);
        match run("scontrol", command).await {
            Ok(output) => Reservation::list(&output),
            Err(error) => {
                tracing::info!(error = &error as &dyn std::error::Error, "reservations are not known");
                Vec::new()
            }
        }
    }

    /// The given jobs as accounting remembers them; None: the site has no accounting.
    ///
    /// # Errors
    /// sacct failed.
    pub async fn accounting(&self, ids: &[String]) -> Result<Option<Vec<Run>>, SlurmError> {
        let Some(sacct) = &self.sacct else { return Ok(None) };
        let mut command = Command::new(sacct);
        command.args(["--json", "--duplicates", "--allocations"]).arg(format!("--jobs={}", ids.join(",")));
        self.remembered(command).await
    }

    /// Jobs of these names that accounting remembers since `since`; None: the site has no accounting.
    ///
    /// # Errors
    /// sacct failed.
    pub async fn accounting_of_names(
        &self,
        names: &[String],
        since: Timestamp,
    ) -> Result<Option<Vec<Run>>, SlurmError> {
        let Some(sacct) = &self.sacct else { return Ok(None) };
        // sacct reads times of this machine's zone.
        let since = since.to_zoned(TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S").to_string();
        let mut command = Command::new(sacct);
        command.args(["--json", "--duplicates", "--allocations"]);
        command.arg(format!("--name={}", names.join(","))).arg(format!("--starttime={since}"));
        self.remembered(command).await
    }

    async fn remembered(&self, command: Command) -> Result<Option<Vec<Run>>, SlurmError> {
        match run("sacct", command).await {
            Ok(output) => Ok(Some(job::from_sacct(&output)?)),
            Err(SlurmError::Refused { message, .. }) if message.contains("accounting storage is disabled") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `scontrol update …`.
    ///
    /// # Errors
    /// scontrol's own message, or there is none.
    pub async fn update(&self, arguments: &[String]) -> Result<(), SlurmError> {
        let Some(scontrol) = &self.scontrol else { return Err(SlurmError::NotFound { command: "scontrol" }) };
        let mut command = Command::new(scontrol);
        command.args(arguments);
        run("scontrol", command).await.map(|_| ())
    }

    /// Cancels a job: TERM, then KILL after the site's KillWait.
    ///
    /// # Errors
    /// scancel's own message; a job that is over already is no error.
    pub async fn cancel(&self, id: &str) -> Result<(), SlurmError> {
        let mut command = Command::new(&self.scancel);
        command.arg(id);
        self.scancel(command).await
    }

    /// Sends USR1 to the batch script, which begins the orderly end, with no KILL after it: TERM is Slurm's own word
    /// for an end that is followed by one.
    ///
    /// # Errors
    /// As [`Self::cancel`].
    pub async fn terminate(&self, id: &str) -> Result<(), SlurmError> {
        let mut command = Command::new(&self.scancel);
        command.args(["--batch", "--signal=USR1"]).arg(id);
        self.scancel(command).await
    }

    async fn scancel(&self, command: Command) -> Result<(), SlurmError> {
        match run("scancel", command).await {
            Ok(_) => Ok(()),
            Err(SlurmError::Refused { message, .. })
                if message.contains("Invalid job id") || message.contains("already completing or completed") =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Slurm's own times; None: the site does not say.
    ///
    /// # Errors
    /// scontrol failed.
    pub async fn times(&self) -> Result<Times, SlurmError> {
        let Some(scontrol) = &self.scontrol else { return Ok(Times::default()) };
        let mut command = Command::new(scontrol);
        command.args(["show", "config"]);
        let output = run("scontrol", command).await?;
        let text = String::from_utf8_lossy(&output);
        let seconds = |name| cluster::seconds(&text, name);
        Ok(Times { kill_wait: seconds("KillWait"), message_timeout: seconds("MessageTimeout") })
    }

    /// Partitions with their limits; None: there is no scontrol.
    ///
    /// # Errors
    /// scontrol failed.
    pub async fn site(&self) -> Result<Option<Site>, SlurmError> {
        let Some(scontrol) = &self.scontrol else { return Ok(None) };
        let mut texts = Vec::new();
        for arguments in [&["show", "config"][..], &["--oneliner", "show", "partition"][..]] {
            let mut command = Command::new(scontrol);
            command.args(arguments);
            texts.push(String::from_utf8_lossy(&run("scontrol", command).await?).into_owned());
        }
        let [config, partitions] = &texts[..] else { return Ok(None) };
        Ok(Some(Site::parse(config, partitions, |name| std::env::var(name).ok())))
    }

    /// Sends USR2 to the batch script: it has new orders.
    ///
    /// # Errors
    /// As [`Self::cancel`]; a job that waits takes no signal.
    pub async fn nudge(&self, id: &str) -> Result<(), SlurmError> {
        let mut command = Command::new(&self.scancel);
        command.args(["--batch", "--signal=USR2"]).arg(id);
        self.scancel(command).await
    }

    /// Starts `netns carry <folder>` as a step beside the others of a job, on its first node, with its standard
    /// streams piped to us.
    ///
    /// # Errors
    /// There is no srun, or it cannot be started; what Slurm says comes on its standard error.
    pub fn step(&self, job: &str, netns: &Path, folder: &Path) -> Result<Child, SlurmError> {
        self.step_in(job, &Part::default(), netns, folder)
    }

    /// As [`Self::step`], in another part of the job than its first node.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_in(&self, job: &str, part: &Part, netns: &Path, folder: &Path) -> Result<Child, SlurmError> {
        let srun = self.srun.as_ref().ok_or(SlurmError::NotFound { command: "srun" })?;
        let mut command = Command::new(srun);
        command
            .args(["--overlap", "--nodes=1", "--ntasks=1", "--mpi=none", "--quiet", "--input=0"])
            .arg(part.node.as_ref().map_or_else(|| "--relative=0".to_owned(), |node| format!("--nodelist={node}")))
            .args(part.component.map(|number| format!("--het-group={number}")))
            // Else Slurm passes on whole lines only, and what it carries has none.
            .arg("--unbuffered")
            .args(["--job-name=hpk-link", "--chdir=/"])
            .arg(format!("--jobid={job}"))
            .arg(netns)
            .arg("carry")
            .arg(folder)
            .env_clear()
            .envs(std::env::vars_os().filter(|(k, _)| k.to_str().is_some_and(keep)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().map_err(|source| SlurmError::Run { command: "srun", source })
    }

    /// The nodes with what they have.
    ///
    /// # Errors
    /// sinfo failed.
    pub async fn cluster(&self) -> Result<Cluster, SlurmError> {
        let mut command = Command::new(&self.sinfo);
        command.args(["--Node", "--noheader"]).arg(format!("--format={}", cluster::FORMAT));
        let output = run("sinfo", command).await?;
        Ok(Cluster::parse(&String::from_utf8_lossy(&output)))
    }
}

/// What user and site say to sbatch by `SBATCH_…`: where and when jobs run. All others are left out, or they would make
/// jobs arrays, move their output, or rename them.
const SBATCH: &[&str] = &[
    "ACCOUNT",
    "ACCTG_FREQ",
    "CONSTRAINT",
    "DELAY_BOOT",
    "EXCLUSIVE",
    "NETWORK",
    "PARTITION",
    "PROFILE",
    "QOS",
    "REQ_SWITCH",
    "RESERVATION",
    "TIMELIMIT",
    "WCKEY",
];

/// Whether a job inherits this variable: also what the site says to sbatch.
fn keep(name: &str) -> bool {
    inherited(name) || name == "SLURM_CONF" || name.strip_prefix("SBATCH_").is_some_and(|rest| SBATCH.contains(&rest))
}

async fn run(name: &'static str, command: Command) -> Result<Vec<u8>, SlurmError> {
    Ok(outcome(name, command).await?.stdout)
}

/// What a command that succeeded has said.
async fn outcome(name: &'static str, mut command: Command) -> Result<Output, SlurmError> {
    command
        .env_clear()
        .envs(std::env::vars_os().filter(|(k, _)| k.to_str().is_some_and(keep)))
        .env("SLURM_TIME_FORMAT", "standard")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output: Output = tokio::time::timeout(LIMIT, command.output())
        .await
        .map_err(|_| SlurmError::Timeout { command: name, limit: LIMIT })?
        .map_err(|source| SlurmError::Run { command: name, source })?;
    if output.status.success() {
        return Ok(output);
    }
    let message = words(name, &String::from_utf8_lossy(&output.stderr));
    Err(SlurmError::Refused {
        command: name,
        message: if message.is_empty() { output.status.to_string() } else { message },
    })
}

/// A command's complaint without the prefixes that every line of it bears.
fn words(name: &str, text: &str) -> String {
    let prefix = format!("{name}: ");
    let lines = text.lines().map(|line| {
        let line = line.trim();
        let line = line.strip_prefix(&prefix).unwrap_or(line);
        line.strip_prefix("error: ").unwrap_or(line)
    });
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints() {
        let text = "sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: Requested node configuration is not available\n";
        assert_eq!(
            words("sbatch", text),
            "Memory specification can not be satisfied; Batch job submission failed: Requested node configuration is not available"
        );
        assert_eq!(words("sbatch", "\n"), "");
    }

    #[tokio::test]
    async fn jobs_get_the_users_limit_of_open_files() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        // A stand-in whose job id is the limit that it has: sbatch hands on what it has.
        let sbatch = folder.path().join("sbatch");
        let script = "#!/bin/sh\n[ \"$1 $2\" = '--a b c' ] && ulimit -Sn && echo sbatch: moved to main >&2\n";
        std::fs::write(&sbatch, script).unwrap();
        std::fs::set_permissions(&sbatch, std::fs::Permissions::from_mode(0o700)).unwrap();
        let none = PathBuf::new();
        let client = Client {
            sbatch,
            squeue: none.clone(),
            sacct: None,
            scancel: none.clone(),
            sinfo: none,
            scontrol: None,
            srun: None,
            open_files: None,
        };
        let submit =
            |client: Client| async move { client.submit(&["--a b".to_owned()], Path::new("c")).await.unwrap() };
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let made = submit(client.clone()).await;
        assert_eq!((made.id, made.said.as_str()), (soft.to_string(), "moved to main"));
        assert_eq!(submit(client.with_open_files(Some(77))).await.id, "77");
    }

    #[test]
    fn what_the_environment_says_to_sbatch() {
        for (name, kept) in [
            ("SBATCH_PARTITION", true),
            ("SBATCH_ACCOUNT", true),
            ("SLURM_CONF", true),
            ("SBATCH_OUTPUT", false),
            ("SBATCH_ARRAY_INX", false),
            ("SBATCH_EXPORT", false),
            ("SBATCH_JOB_NAME", false),
            ("SBATCH_MEM_PER_CPU", false),
            ("SLURM_CLUSTERS", false),
            ("SBATCH_", false),
        ] {
            assert_eq!(keep(name), kept, "{name}");
        }
    }

    #[test]
    fn what_a_second_try_can_help() {
        let refused = |message: &str| SlurmError::Refused { command: "sbatch", message: message.to_owned() };
        assert!(
            refused("Batch job submission failed: Unable to contact slurm controller (connect failure)").is_transient()
        );
        assert!(!refused("Batch job submission failed: Requested node configuration is not available").is_transient());
    }

    #[test]
    fn what_may_have_made_a_job() {
        let failed = |reason: &str| SlurmError::Refused {
            command: "sbatch",
            message: format!("Batch job submission failed: {reason}"),
        };
        for reason in [
            "Requested node configuration is not available",
            "Invalid account or account/partition combination specified",
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            "Unable to contact slurm controller (connect failure)",
        ] {
            assert!(failed(reason).is_refusal(), "{reason}");
        }
        for reason in [
            "Socket timed out on send/recv operation",
            "Unable to contact slurm controller (receive failure)",
            "Unable to contact slurm controller (send failure)",
            "Zero Bytes were transmitted or received",
            "Unexpected message received",
            "Connection reset by peer",
            "Resource temporarily unavailable",
        ] {
            assert!(!failed(reason).is_refusal(), "{reason}");
        }
        let other = |message: &str| SlurmError::Refused { command: "sbatch", message: message.to_owned() };
        assert!(!other("signal: 9 (SIGKILL)").is_refusal() && !other("gave no job id but \"\"").is_refusal());
        assert!(!SlurmError::Timeout { command: "sbatch", limit: LIMIT }.is_refusal());
    }
}
