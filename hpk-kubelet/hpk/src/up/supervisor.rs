//! The detached process of `hpk supervise`: its start by `hpk up`, and its own beginning.

use super::LOCK_AGAIN;
use crate::components::{self, Layout};
use crate::json::need_json;
use crate::site;
use crate::supervise::control::{self, Holder};
use crate::supervise::driver::{Hangup, Supervisor};
use crate::supervise::lease::{self, Claim, Lease, Lost, Me};
use crate::supervise::strays;
use anyhow::{Context, Result, bail};
use hpk_layout::Home;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::SignalKind;

/// What the supervisor writes to its first standard output once its socket is there.
const LISTENING: &[u8] = b"listening\n";
/// How long a supervisor that was told to stop, and has closed its socket, may take to be gone.
const SUPERVISOR_ENDS: Duration = Duration::from_secs(5);

/// Starts `hpk supervise` and returns when its socket is there.
pub(super) fn start_supervisor(home: &Home, free_lease: Option<&Claim>) -> Result<()> {
    let log_path = home.supervisor_log();
    let log = File::options().create(true).append(true).mode(0o600).open(&log_path)?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("supervise")
        .arg("--home")
        .arg(home.root())
        .args(free_lease.map(|claim| format!("--free-lease={}", lease::mark(claim))))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .context("starting the supervisor")?;
    let mut said = Vec::new();
    if let Some(out) = &mut child.stdout {
        // It closes its end when it listens, or when it dies.
        out.read_to_end(&mut said)?;
    }
    if said != LISTENING {
        bail!("the supervisor did not start: see the end of {}", log_path.display());
    }
    Ok(())
}

/// What `hpk up` has decided.
pub(crate) fn layout(home: Home) -> Result<Layout> {
    Ok(Layout {
        cluster: need_json(&home.cluster_json())?,
        control_plane: need_json(&home.control_plane_json())?,
        home,
    })
}

/// `hpk supervise`: detaches from the terminal and runs until told to stop.
///
/// `free_lease`: the mark of a lease that `hpk up` has found to be free.
pub(crate) async fn supervise(home: Home, free_lease: Option<&str>) -> Result<ExitCode> {
    // Not a session leader only when started by hand from a shell; that is fine too.
    let _ = nix::unistd::setsid();
    let hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
    let host = site::hostname()?;
    let _lock = lock_supervisor(&home, &host).await?;
    let me = Me::new(&host);
    let former = lease::replaceable(&home, &me, free_lease)?;
    let lease = Arc::new(Mutex::new(Lease::take(&home, &me, super::token()?, former.as_ref())?));
    let result = serve(&home, &host, hangup, &lease).await;
    // One that a dead file system holds is not given back.
    if let Ok(lease) = lease.try_lock() {
        lease.release(&home);
    }
    // Best effort: a record that stays is recognised as stale by its socket.
    let _ = std::fs::remove_file(home.supervisor_json());
    result?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the control plane until it is told to stop, or another login node has it.
async fn serve(home: &Home, host: &str, mut hangup: Hangup, lease: &lease::Shared) -> Result<()> {
    let layout = layout(home.clone())?;
    // To the end: its servers come and go beside.
    let _ports = layout.control_plane.ports.hold(layout.cluster.node_ip)?;
    let hpk = std::env::current_exe()?;
    let mut told = false;
    loop {
        let listener = control::listen(home, host)?;
        if !std::mem::replace(&mut told, true) {
            tell_parent()?;
        }
        let components = components::all(&layout, &hpk);
        let supervisor = Supervisor::new(components, home.clone(), hpk.clone(), host.to_owned());
        let Some(lost) = supervisor.run(listener, hangup, lease.clone()).await? else { return Ok(()) };
        let strays = strays::end(home.root());
        hpk_api::say!("{} {strays} programs that were left have ended", jiff::Timestamp::now());
        if let Lost::Taken(host) = lost {
            bail!("the control plane of this HPK_HOME has been started on {host}");
        }
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        tokio::select! {
            ours = lease::regain(lease.clone()) => if !ours { return Ok(()) },
            _ = terminate.recv() => return Ok(()),
        }
        hpk_api::say!("{} HPK_HOME answers again", jiff::Timestamp::now());
        hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
    }
}

/// Held by the supervisor for its life.
pub(super) async fn lock_supervisor(home: &Home, host: &str) -> Result<File> {
    let path = home.supervisor_lock();
    let give_up = tokio::time::Instant::now() + SUPERVISOR_ENDS;
    loop {
        match Holder::lock(&path, host).with_context(|| path.display().to_string())? {
            Some(lock) => return Ok(lock),
            None if tokio::time::Instant::now() < give_up => tokio::time::sleep(LOCK_AGAIN).await,
            None => bail!("another supervisor holds {}: run hpk down, which ends it", path.display()),
        }
    }
}

/// Says [`LISTENING`] on standard output and closes it.
fn tell_parent() -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout();
    // Nobody may listen: then this was started by hand.
    let _ = out.write_all(LISTENING).and_then(|()| out.flush());
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}
