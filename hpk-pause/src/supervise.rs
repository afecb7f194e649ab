//! From a plan file to the pod's end: puts the parts together.

use crate::control;
use crate::driver::{Driver, Inputs, Outputs, Surroundings};
use crate::helper::Helper;
use crate::options::Run;
use crate::paths::Paths;
use crate::perform::{Happening, Performer};
use crate::status::{self, StatusWriter};
use crate::term::TermRule;
use hpk_api::plan::{PlanError, SandboxPlan};
use hpk_api::state::{ContainerState, PodState, RunState, Termination};
use hpk_core::Identity;
use hpk_log::{LogService, LogSettings};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, watch};

/// Why there is no supervision.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The plan cannot be read.
    #[error("{}: {source}", path.display())]
    ReadPlan { path: PathBuf, source: std::io::Error },
    /// The plan is none, or from the future.
    #[error("{}: {source}", path.display())]
    Plan { path: PathBuf, source: PlanError },
    /// Not PID 1.
    #[error(
        "hpk-pause is process {0} and not PID 1: orphans of the pod would not come to it; start it by apptainer exec --no-init, or give --allow-not-init"
    )]
    NotInit(u32),
    /// The system refuses what it cannot do without.
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    /// The launcher cannot work here.
    #[error("cannot start containers on this node: {0}")]
    Launcher(#[from] hpk_sys::launch::LaunchError),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> SuperviseError {
    move |source| SuperviseError::System { what, source }
}

/// Supervises a pod to its end. True when it succeeded. An error is also left in status.json, where it can be.
///
/// # Errors
/// Why the pod could not be supervised at all.
pub fn run(options: &Run) -> Result<bool, SuperviseError> {
    let result = supervise(options);
    if let Err(error) = &result {
        leave_word(&options.paths, error.to_string());
    }
    result
}

fn supervise(options: &Run) -> Result<bool, SuperviseError> {
    let paths = &options.paths;
    let pid = std::process::id();
    if pid != 1 {
        if !options.allow_not_init {
            return Err(SuperviseError::NotInit(pid));
        }
        hpk_sys::reap::become_subreaper().map_err(|e| system("become the reaper of orphans")(e.into()))?;
        hpk_api::say!("hpk-pause: not PID 1 but {pid}: taking orphans as a subreaper");
    }
    hpk_sys::memory::frugal();
    // Before there are threads.
    crate::stops::hold().map_err(system("hold signals"))?;
    hpk_sys::signals::ignore_sigpipe().map_err(|e| system("ignore SIGPIPE")(e.into()))?;
    let plan = read_plan(paths)?;
    let previous = read_previous(paths, &plan);
    let surroundings = surroundings(&plan, previous);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the event loop"))?;
    let result = runtime.block_on(live(plan, surroundings, paths));
    runtime.shutdown_background();
    result
}

/// Longest wait at the end for clients that still read output.
const LAST_CLIENTS: std::time::Duration = std::time::Duration::from_secs(10);

async fn live(plan: SandboxPlan, surroundings: Surroundings, paths: &Paths) -> Result<bool, SuperviseError> {
    let (happenings, their_happenings) = mpsc::unbounded_channel();
    let (kills, their_kills) = mpsc::unbounded_channel();
    let (driver_requests, requests) = mpsc::channel(64);
    let from_log = happenings.clone();
    let settings = LogSettings {
        max_bytes: plan.settings.log_max_bytes,
        max_files: plan.settings.log_max_files,
        ..LogSettings::default()
    };
    let helper = Helper::start().map_err(system("start the helper thread"))?;
    // First, for it waits for devices and for hpk-netns while the rest is made here.
    make_sandbox(&plan, paths, &helper, happenings.clone());
    let log = LogService::start(settings, move |event| {
        let _ = from_log.send(Happening::Log(event));
    })
    .map_err(system("start the log thread"))?;
    let performer = Performer::new(paths.clone(), &plan, log.clone(), helper.clone(), happenings.clone(), kills)?;
    let driver = Driver::new(plan, surroundings, paths.clone(), performer, helper, happenings.clone());
    let (state, watched) = watch::channel(driver.state());
    let status = StatusWriter::start(paths.status()).map_err(system("start the status thread"))?;
    remember_for_panic(paths, watched.clone());
    let sessions = control::Sessions::default();
    match control::bind(&paths.socket()) {
        Ok(listener) => {
            let context = control::Context {
                driver: driver_requests,
                state: watched,
                log,
                sessions: sessions.clone(),
                netns: paths.netns(),
            };
            tokio::spawn(control::serve(listener, context));
        }
        // The pod lives without it; kubectl exec and logs then do not work.
        Err(error) => hpk_api::say!("hpk-pause: control socket {}: {error}", paths.socket().display()),
    }
    let inputs = Inputs { requests, happenings: their_happenings, kills: their_kills };
    let ended = driver.run(inputs, Outputs { state, status }).await;
    let _ = std::fs::remove_file(paths.socket());
    // Whoever follows a log or is attached reads the last words of a pod, however short its life was.
    sessions.finished(LAST_CLIENTS).await;
    ended.map_err(system("listen for signals"))
}

/// Network, volumes and files, off the event loop, which takes what comes of it as its first happening.
fn make_sandbox(plan: &SandboxPlan, paths: &Paths, helper: &Helper, happenings: mpsc::UnboundedSender<Happening>) {
    let (plan, paths) = (plan.clone(), paths.clone());
    helper.run(move || {
        let made = crate::network::make(&plan, &paths).map_err(|e| e.to_string()).and_then(|mut network| {
            let reach = crate::crossing::begin(&plan, &paths, &mut network);
            crate::sandbox::make(&plan, &paths, &network.result.pod_ips()).map_err(|e| e.to_string())?;
            Ok(Box::new((network, crate::spec::users(&plan, &paths), reach)))
        });
        let _ = happenings.send(Happening::Sandbox(made));
    });
}

fn read_plan(paths: &Paths) -> Result<SandboxPlan, SuperviseError> {
    let path = &paths.plan;
    let bytes = std::fs::read(path).map_err(|source| SuperviseError::ReadPlan { path: path.clone(), source })?;
    SandboxPlan::parse(&bytes).map_err(|source| SuperviseError::Plan { path: path.clone(), source })
}

/// What a former run of this very pod's job left: it was requeued. What ended without a sandbox is no run.
fn read_previous(paths: &Paths, plan: &SandboxPlan) -> Option<PodState> {
    let bytes = std::fs::read(paths.status()).ok()?;
    let state: PodState = serde_json::from_slice(&bytes).ok()?;
    (state.pod.uid == plan.pod.uid && state.sandbox_error.is_none()).then_some(state)
}

fn surroundings(plan: &SandboxPlan, previous: Option<PodState>) -> Surroundings {
    let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let host_name = || nix::unistd::gethostname().ok().map(|n| n.to_string_lossy().into_owned());
    let node = var("HPK_NODE").or_else(|| var("SLURMD_NODENAME")).or_else(host_name).unwrap_or_default();
    Surroundings {
        identity: Identity { job_id: hpk_api::local::run_id(var), node, host_ips: crate::spec::host_ips() },
        previous,
        term: TermRule::new(var("SLURM_JOB_END_TIME").as_deref(), plan.settings.kill_wait_seconds),
    }
}

/// Leaves a status that says why there is no supervisor.
fn leave_word(paths: &Paths, error: String) {
    let plan = read_plan(paths).ok();
    let previous = std::fs::read(paths.status()).ok().and_then(|b| serde_json::from_slice::<PodState>(&b).ok());
    let mut state = previous.unwrap_or_default();
    state.version = hpk_api::VERSION;
    if let Some(plan) = plan {
        state.pod = plan.pod;
    }
    end_badly(&mut state, error);
    if let Err(error) = status::write(&paths.status(), &state, true) {
        hpk_api::say!("hpk-pause: {}: {error}", paths.status().display());
    }
}

/// The supervisor is no more: what ran has ended with the job, and nobody saw how.
fn end_badly(state: &mut PodState, error: String) {
    let lists = [&mut state.init_containers, &mut state.containers, &mut state.ephemeral_containers];
    for container in lists.into_iter().flatten() {
        lost(container);
    }
    state.sequence += 1;
    state.sandbox_error = Some(error);
    state.finished = true;
}

fn lost(container: &mut ContainerState) {
    let RunState::Running { started_at } = container.state else { return };
    container.state =
        RunState::Terminated(Termination::unseen(Some(started_at), Timestamp::now(), &container.container_id));
    container.started = false;
    container.ready = false;
}

/// A panic ends the job at once, with a status that says so: half a supervisor would be worse than none.
fn remember_for_panic(paths: &Paths, state: watch::Receiver<Arc<PodState>>) {
    let path = paths.status();
    // The receiver is not Sync by itself.
    let state = Mutex::new(state);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = PodState::clone(&state.borrow());
        end_badly(&mut last, format!("hpk-pause has failed: {info}"));
        if let Err(error) = status::write(&path, &last, true) {
            hpk_api::say!("hpk-pause: {}: {error}", path.display());
        }
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The very hook of a supervisor, in a process of its own: the test program runs this one test again.
    #[test]
    fn a_panic_leaves_word_and_ends_the_process() {
        const FOLDER: &str = "HPK_TEST_PANIC_IN";
        if let Some(pod) = std::env::var_os(FOLDER) {
            let running = RunState::Running { started_at: Timestamp::UNIX_EPOCH };
            let container = ContainerState { name: "c".to_owned(), state: running, ready: true, ..Default::default() };
            let state = PodState { sequence: 7, containers: vec![container], ..PodState::default() };
            let (_keep, watched) = watch::channel(Arc::new(state));
            remember_for_panic(&Paths { pod: pod.into(), ..Paths::default() }, watched);
            panic!("the reason");
        }
        let dir = tempfile::tempdir().unwrap();
        let this = "supervise::tests::a_panic_leaves_word_and_ends_the_process";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this, "--nocapture"])
            .env(FOLDER, dir.path())
            .output()
            .unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.status), Some(6), "{child:?}");
        let paths = Paths { pod: dir.path().to_owned(), ..Paths::default() };
        let state: PodState = serde_json::from_slice(&std::fs::read(paths.status()).unwrap()).unwrap();
        assert!(state.finished && state.sequence == 8);
        let error = state.sandbox_error.unwrap();
        assert!(error.contains("hpk-pause has failed") && error.contains("the reason"), "{error}");
        let RunState::Terminated(end) = &state.containers[0].state else { panic!("{:?}", state.containers[0]) };
        assert_eq!((end.exit_code, end.reason.as_str()), (137, "ContainerStatusUnknown"));
        assert!(!state.containers[0].ready);
    }

    #[test]
    fn a_bad_plan_leaves_word() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { plan: dir.path().join("plan.json"), pod: dir.path().to_owned(), ..Paths::default() };
        let options = Run { paths: paths.clone(), allow_not_init: true };
        for (plan, word) in
            [(r#"{"version": 99}"#, "version 99"), ("{", "not a plan"), (r#"{"version": 1}"#, "missing field")]
        {
            std::fs::write(&paths.plan, plan).unwrap();
            let error = run(&options).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            let state: PodState = serde_json::from_slice(&std::fs::read(paths.status()).unwrap()).unwrap();
            assert!(state.finished && state.sandbox_error.unwrap().contains(word));
        }
    }
}
