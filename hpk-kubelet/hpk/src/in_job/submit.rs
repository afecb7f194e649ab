//! Sends the job that runs the control plane, and waits until it serves.

use super::record::{self, Choice, JOB_NAME, Job, Queued};
use crate::json::write_json;
use crate::progress::Progress;
use crate::site;
use crate::up::ready;
use anyhow::{Context, Result, bail};
use hpk_layout::Home;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::time::Instant;

/// In the environment of the `hpk up` that the job runs.
pub(crate) const HERE: &str = "HPK_IN_JOB";

/// Between two questions to Slurm.
const ASK: Duration = Duration::from_secs(2);

/// `--in-job`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// In a job with these flags of sbatch.
    Job(Vec<String>),
    /// On this machine.
    Off,
}

/// Reads `--in-job`.
pub(crate) fn parse(text: &str) -> Result<Asked, String> {
    if text == "off" {
        return Ok(Asked::Off);
    }
    let flags: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    match flags.iter().find(|flag| !flag.starts_with('-') || !flag.starts_with("--") && flag.len() < 3) {
        Some(word) => Err(format!("{word:?}: write each flag of sbatch as one word, such as --time=1-0 or -pdebug")),
        None => Ok(Asked::Job(flags)),
    }
}

/// Whether the control plane is to be in a job, as asked for now or before.
///
/// # Errors
/// What was asked before cannot be read.
pub(crate) fn choice(home: &Home, asked: Option<&Asked>) -> Result<Option<Choice>> {
    if std::env::var_os(HERE).is_some() {
        return Ok(None);
    }
    match asked {
        Some(Asked::Off) => {
            let _absent = std::fs::remove_file(home.in_job());
            Ok(None)
        }
        Some(Asked::Job(flags)) => {
            let choice = Choice { flags: flags.clone(), up: others(std::env::args().skip(1)) };
            choice.write(home)?;
            Ok(Some(choice))
        }
        None => Ok(Choice::read(home)?.map(|former| {
            let given = others(std::env::args().skip(1));
            if given.is_empty() { former } else { Choice { up: given, ..former } }
        })),
    }
}

/// Arguments of `hpk up` but for those about the job.
fn others(args: impl Iterator<Item = String>) -> Vec<String> {
    args.skip_while(|word| word != "up").skip(1).filter(|word| !word.starts_with("--in-job")).collect()
}

/// Sends a job, unless one is there already, and waits until the control plane serves.
///
/// # Errors
/// Slurm's, or the job ends, or it takes longer than `timeout`.
pub(crate) async fn start(home: &Home, choice: &Choice, progress: &Progress, timeout: Duration) -> Result<ExitCode> {
    let there = record::queued(home)?;
    let id = match there.first() {
        Some(job) => {
            progress.done(&format!("job {} of the control plane is there already", job.id));
            if job.reason == "BeginTime" {
                // It was to follow one that has gone.
                site::slurm("scontrol", &["update", &format!("JobId={}", job.id), "StartTime=now"])?;
            }
            job.id.clone()
        }
        None => {
            let id = sbatch(&std::env::current_exe()?, home, &choice.flags, None)?;
            write_json(&home.job(), &Job::new(id.clone()))?;
            progress.done(&format!("job {id} is submitted: the control plane starts in it"));
            id
        }
    };
    let give_up = Instant::now() + timeout;
    let mut told = String::new();
    loop {
        let jobs = record::queued(home)?;
        let Some(job) = jobs.iter().find(|job| job.id == id).or(jobs.first()) else {
            bail!("job {id} has ended: see the end of {}", home.log().join(LOG).display());
        };
        let says = says(job);
        progress.waiting(says.clone());
        if told != says {
            progress.done(&says);
            told = says;
        }
        if job.state == "RUNNING" && Job::current(home).is_ok_and(|now| now.ready && now.id == job.id) {
            ready::until(home, progress, give_up).await?;
            break;
        }
        if Instant::now() >= give_up {
            bail!(
                "not ready after {} s: job {id} stays; hpk up waits for it again, hpk down cancels it, {} has its output",
                timeout.as_secs(),
                home.log().join(LOG).display()
            );
        }
        tokio::time::sleep(ASK).await;
    }
    ready::tell(home, progress);
    Ok(ExitCode::SUCCESS)
}

fn says(job: &Queued) -> String {
    match job.state.as_str() {
        "PENDING" => format!("job {} waits in Slurm's queue: {}", job.id, job.reason),
        "RUNNING" => format!("job {} runs on {}", job.id, job.node),
        other => format!("job {} is {other}", job.id),
    }
}

/// The job's output, below HPK_HOME/log.
const LOG: &str = "job.log";

/// Submits; the job's id. `begin`: seconds from now.
///
/// # Errors
/// sbatch's words.
pub(super) fn sbatch(hpk: &Path, home: &Home, flags: &[String], begin: Option<u64>) -> Result<String> {
    let mut command = Command::new("sbatch");
    for (name, _) in std::env::vars_os() {
        if is_of_a_job(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command.args(arguments(home, flags, begin)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("sbatch")?;
    if let Some(input) = &mut child.stdin {
        input.write_all(script(hpk, home.root()).as_bytes()).context("sbatch")?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("sbatch refuses the control plane's job: {}: change it with hpk up --in-job='FLAGS'", said.trim());
    }
    let id = String::from_utf8_lossy(&output.stdout);
    // `<id>` or `<id>;<cluster>`.
    Ok(id.trim().split(';').next().unwrap_or_default().to_owned())
}

/// The user's flags come between ours that may be changed and ours that may not.
fn arguments(home: &Home, flags: &[String], begin: Option<u64>) -> Vec<String> {
    let root = home.root().display();
    let mut all = vec!["--parsable".to_owned()];
    all.extend(["--ntasks=1", "--cpus-per-task=2", "--mem=2G", "--requeue"].map(str::to_owned));
    all.extend(flags.iter().cloned());
    all.extend(begin.map(|seconds| format!("--begin=now+{seconds}")));
    all.extend([
        format!("--job-name={JOB_NAME}"),
        format!("--chdir={root}"),
        format!("--output={}", home.log().join(LOG).display()),
        "--open-mode=append".to_owned(),
        "--nodes=1".to_owned(),
        "--export=ALL".to_owned(),
    ]);
    all
}

fn script(hpk: &Path, home: &Path) -> String {
    let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!("#!/bin/bash\nexec {} job --home {}\n", quote(hpk), quote(home))
}

/// What Slurm tells the processes of a job, and would take for what a new job wants.
pub(super) fn is_of_a_job(variable: &str) -> bool {
    (variable.starts_with("SLURM_") && variable != "SLURM_CONF") || variable.starts_with("SBATCH_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_words_of_their_own() {
        assert_eq!(parse("off"), Ok(Asked::Off));
        assert_eq!(parse(""), Ok(Asked::Job(vec![])));
        assert_eq!(parse("--time=3 -pdebug"), Ok(Asked::Job(vec!["--time=3".into(), "-pdebug".into()])));
        for wrong in ["--time 3", "debug", "-p debug"] {
            assert!(parse(wrong).is_err_and(|why| why.contains("one word")), "{wrong}");
        }
    }

    #[test]
    fn the_job_gets_what_hpk_up_was_told() {
        let words = |text: &str| others(text.split(' ').map(str::to_owned));
        assert_eq!(words("up --in-job=--time=3 --no-kubelet --timeout 9"), ["--no-kubelet", "--timeout", "9"]);
        assert!(words("up --in-job").is_empty());
    }

    #[test]
    fn the_user_decides_where_and_how_long_and_not_what() {
        let home = Home::at("/h/.hpk");
        let all = arguments(&home, &["--mem=4G".into(), "--job-name=x".into()], Some(9));
        let at = |flag: &str| all.iter().position(|a| a == flag);
        assert!(at("--mem=2G") < at("--mem=4G") && at("--job-name=x") < at("--job-name=hpk-control-plane"));
        assert!(at("--begin=now+9").is_some());
        assert_eq!(
            script(Path::new("/o'x/hpk"), Path::new("/h")),
            "#!/bin/bash\nexec '/o'\\''x/hpk' job --home '/h'\n"
        );
    }
}
