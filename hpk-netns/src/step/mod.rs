//! MPI steps on the node's side: starts srun for the supervisor and stands between it and the ranks.
//!
//! ```text
//! hpk-pause ── StepStart ─▶ srun ──▶ ranks on all nodes: hpk-netns rank
//!           ── StepOrder ─▶ srun's standard input, which goes to all ranks
//!           ◀─ StepNews ─── records on srun's standard output ─▶ lines of output to the container's log
//! ```
//! It decides nothing about the step: that is the supervisor's. When the supervisor is gone, so is the step.

mod label;
mod library;
pub(crate) mod record;
mod session;
mod srun;

pub(crate) use session::run as session;

use crate::rank::place::Place;
use hpk_api::step::{Keeper, StepFile, StepNews, StepOrder, StepStart};
use hpk_sys::procfs;
use label::Label;
use library::Library;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use record::{Heard, Records};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// From the order to kill the ranks to asking srun for it, and from there to killing srun.
const RANKS_DIE: Duration = Duration::from_secs(3);
const SRUN_ENDS: Duration = Duration::from_secs(5);

/// Where Intel MPI is told of Slurm's client of PMI-2.
const INTEL: &str = "I_MPI_PMI_LIBRARY";

/// How much of srun's words is kept for a message, bytes.
const WORDS: usize = 1024;

/// Runs a step to its end and tells the supervisor of it. `pod`: the pod's folder.
pub(crate) async fn run(pod: PathBuf, start: StepStart, fds: Vec<OwnedFd>, stream: UnixStream) {
    run_by(find_srun(), pod, start, fds, stream).await;
}

async fn run_by(srun: io::Result<PathBuf>, pod: PathBuf, start: StepStart, fds: Vec<OwnedFd>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let (news_in, mut news) = mpsc::unbounded_channel();
    let mut orders = BufReader::new(read).lines();
    let begun = match srun {
        Ok(srun) => begin(srun, &pod, &start, fds, &news_in).await,
        Err(error) => Err(error),
    };
    let mut srun = match begun {
        Ok(begun) => begun,
        Err(error) => return tell(&mut write, &ended(1, error.to_string())).await,
    };
    drop(news_in);
    let mut input = srun.child.stdin.take();
    let mut deadline: Option<(Instant, Signal)> = None;
    let code = loop {
        tokio::select! {
            status = srun.child.wait() => break status.map_or(1, code_of),
            Some(news) = news.recv() => tell(&mut write, &news).await,
            line = orders.next_line() => {
                let line = line.ok().flatten();
                // A supervisor that has gone wants the step's end.
                let gone = line.is_none();
                let order = match line.map(|line| serde_json::from_str(&line)) {
                    None => StepOrder::Signal(9),
                    Some(Ok(order)) => order,
                    // Of a supervisor that knows more orders than this program.
                    Some(Err(_)) => continue,
                };
                if let Some(input) = &mut input {
                    let mut line = serde_json::to_vec(&order).unwrap_or_default();
                    line.push(b'\n');
                    // Only a step that is over does not take it.
                    let _ = input.write_all(&line).await;
                }
                if order == StepOrder::Signal(9) && deadline.is_none() {
                    deadline = Some((Instant::now() + RANKS_DIE, Signal::SIGTERM));
                }
                if gone {
                    break srun.end().await;
                }
            }
            () = until(deadline) => deadline = srun.press(deadline),
        }
    };
    let words = srun.rest().await;
    while let Some(news) = news.recv().await {
        tell(&mut write, &news).await;
    }
    tell(&mut write, &ended(code, words)).await;
    srun.place.leave();
}

fn ended(code: i32, words: String) -> StepNews {
    StepNews::Ended { code, words }
}

async fn tell(stream: &mut (impl AsyncWriteExt + Unpin), news: &StepNews) {
    let mut line = serde_json::to_vec(news).unwrap_or_default();
    line.push(b'\n');
    // A supervisor that is gone needs no news.
    let _ = stream.write_all(&line).await;
}

async fn until(deadline: Option<(Instant, Signal)>) {
    match deadline {
        Some((at, _)) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn code_of(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// srun at work.
struct Srun {
    child: Child,
    output: JoinHandle<()>,
    words: JoinHandle<String>,
    /// Of the ranks on this node.
    place: Place,
}

impl Srun {
    /// The next, harder signal.
    fn press(&self, deadline: Option<(Instant, Signal)>) -> Option<(Instant, Signal)> {
        let (_, signal) = deadline?;
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
        Some((Instant::now() + SRUN_ENDS, Signal::SIGKILL))
    }

    async fn end(&mut self) -> i32 {
        let mut deadline = Some((Instant::now() + RANKS_DIE, Signal::SIGTERM));
        loop {
            tokio::select! {
                status = self.child.wait() => return status.map_or(1, code_of),
                () = until(deadline) => deadline = self.press(deadline),
            }
        }
    }

    /// The last of its output, and its words.
    async fn rest(&mut self) -> String {
        let _ = (&mut self.output).await;
        (&mut self.words).await.unwrap_or_default()
    }
}

async fn begin(
    srun: PathBuf,
    pod: &Path,
    start: &StepStart,
    fds: Vec<OwnedFd>,
    news: &mpsc::UnboundedSender<StepNews>,
) -> io::Result<Srun> {
    let missing = || io::Error::other("the descriptors did not come with the request for a step");
    let mut fds = fds.into_iter();
    let (keeper, stdout, stderr) =
        (fds.next().ok_or_else(missing)?, fds.next().ok_or_else(missing)?, fds.next().ok_or_else(missing)?);
    let place = first(pod, start.instance, &keeper).map_err(io::Error::other)?;
    let own_words = stderr.try_clone()?;
    let list = Command::new(&srun).arg("--mpi=list").stdin(Stdio::null()).output().await;
    let list = list.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let library = look(pod, start.instance, &keeper).await;
    let cpus = std::env::var("SLURM_CPUS_PER_TASK").ok();
    let program = std::env::current_exe()?;
    let (label, flags) = Label::of_flags(start.flags.clone());
    if let Some(advice) = library::advice(srun::given(&flags, "--mpi"), library.family) {
        pipe::Sender::from_owned_fd(own_words.try_clone()?)?.write_all(format!("{advice}\n").as_bytes()).await?;
    }
    let argv = srun::arguments(&srun::Parts {
        flags: &flags,
        mpi: library::choose_mpi(&String::from_utf8_lossy(&list), library.family),
        cpus_per_task: cpus.as_deref(),
        program: &program,
        pod,
        instance: start.instance,
    });
    // Intel MPI loads it; a job's own setting, and the pod's, win.
    let pmi2 = library.pmi2.filter(|_| std::env::var_os(INTEL).is_none()).map(|path| (INTEL, path));
    let mut child = Command::new(srun)
        .args(argv)
        .envs(pmi2)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (out, err) = (child.stdout.take().ok_or_else(missing)?, child.stderr.take().ok_or_else(missing)?);
    let (stdout, stderr) = (pipe::Sender::from_owned_fd(stdout)?, pipe::Sender::from_owned_fd(stderr)?);
    let output = tokio::spawn(carry(out, label, stdout, stderr, news.clone()));
    let words = tokio::spawn(listen(err, pipe::Sender::from_owned_fd(own_words)?));
    Ok(Srun { child, output, words, place })
}

fn find_srun() -> io::Result<PathBuf> {
    which::which("srun").map_err(|error| io::Error::other(format!("srun is not on this node's PATH: {error}")))
}

/// What the container holds; where it cannot be told, nothing.
async fn look(pod: &Path, instance: u32, keeper: &OwnedFd) -> Library {
    let Some(pid) = procfs::pid_of(keeper.as_fd()) else { return Library::default() };
    let file = hpk_layout::pod::inside(pod).join(hpk_layout::pod::step(instance));
    let looked = tokio::task::spawn_blocking(move || {
        let step: StepFile = serde_json::from_slice(&std::fs::read(file)?)?;
        let root = std::fs::File::open(format!("/proc/{pid}/root"))?;
        io::Result::Ok(library::find(&root.into(), &step.rank.env))
    });
    looked.await.map_err(io::Error::other).flatten().unwrap_or_default()
}

/// Leaves word for this node's ranks where their container is: the supervisor has made it.
fn first(pod: &Path, instance: u32, pidfd: &OwnedFd) -> Result<Place, crate::rank::RankError> {
    let place = Place::take(pod, instance)?;
    let pid = procfs::pid_of(pidfd.as_fd()).ok_or(hpk_sys::launch::LaunchError::NotRunning)?;
    let start = procfs::start_time(pid).unwrap_or_default();
    place.record(Keeper { pid: pid.as_raw(), start, ready: false })?;
    Ok(place.open())
}

/// The ranks' output to the container's log, their news to whoever asks.
async fn carry(
    out: ChildStdout,
    mut label: Label,
    mut stdout: pipe::Sender,
    mut stderr: pipe::Sender,
    news: mpsc::UnboundedSender<StepNews>,
) {
    let mut out = BufReader::with_capacity(64 << 10, out);
    let mut records = Records::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = out.read_until(b'\n', &mut line).await;
        let over = !matches!(read, Ok(1..));
        let heard: Vec<Heard> = if over {
            records.rest().collect()
        } else {
            records.take(line.strip_suffix(b"\n").unwrap_or(&line)).into_iter().collect()
        };
        for heard in heard {
            // A log that is closed takes nothing; the ranks go on.
            let _ = match heard {
                Heard::Stdout(rank, line) => stdout.write_all(&label.put(rank, line)).await,
                Heard::Stderr(rank, line) => stderr.write_all(&label.put(rank, line)).await,
                Heard::Other(line) => stderr.write_all(&line).await,
                Heard::News(news_of) => {
                    label.hear(&news_of);
                    let _ = news.send(news_of);
                    Ok(())
                }
            };
        }
        if over {
            return;
        }
    }
}

/// srun's own words to the container's log; the last of them.
async fn listen(mut err: ChildStderr, mut log: pipe::Sender) -> String {
    let mut last = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(n @ 1..) = err.read(&mut buffer).await {
        let part = buffer.get(..n).unwrap_or_default();
        let _ = log.write_all(part).await;
        last.extend_from_slice(part);
        last.drain(..last.len().saturating_sub(WORDS));
    }
    telling(&last)
}

/// What of srun's words goes into a message: the last three lines; of more, srun's first error and the last two. What went wrong
/// first is the reason, and the rest often only says what became of the other ranks.
fn telling(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = |count: usize| lines.get(lines.len().saturating_sub(count)..).unwrap_or_default();
    let first = lines.iter().take(lines.len().saturating_sub(2)).find(|line| line.starts_with("srun: error: "));
    match first {
        Some(first) => std::iter::once(first).chain(last(2)).copied().collect::<Vec<_>>().join("; "),
        None => last(3).join("; "),
    }
}

#[cfg(test)]
mod tests;
