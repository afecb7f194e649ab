//! The detached process of `hpk supervise`: its start by `hpk up`, and its own beginning.

use super::LOCK_AGAIN;
use crate::components::{self, Layout};
use crate::home::Home;
use crate::json::need_json;
use crate::site;
use crate::supervise::control::{self, Holder};
use crate::supervise::driver::Supervisor;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::signal::unix::SignalKind;

/// What the supervisor writes to its first standard output once its socket is there.
const LISTENING: &[u8] = b"listening\n";
/// How long a supervisor that was told to stop, and has closed its socket, may take to be gone.
const SUPERVISOR_ENDS: Duration = Duration::from_secs(5);

/// Starts `hpk supervise` and returns when its socket is there.
pub(super) fn start_supervisor(home: &Home) -> Result<()> {
    let log_path = home.log().join("supervisor.log");
    let log = File::options().create(true).append(true).mode(0o600).open(&log_path)?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg("supervise")
        .arg("--home")
        .arg(home.root())
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

/// `hpk supervise`: detaches from the terminal and runs until told to stop.
pub(crate) async fn supervise(home: Home) -> Result<ExitCode> {
    // Not a session leader only when started by hand from a shell; that is fine too.
    let _ = nix::unistd::setsid();
    let hangup = tokio::signal::unix::signal(SignalKind::hangup())?;
    let host = site::hostname()?;
    let _lock = lock_supervisor(&home, &host).await?;

    let layout = Layout {
        cluster: need_json(&home.cluster_json())?,
        control_plane: need_json(&home.control_plane_json())?,
        home: home.clone(),
    };
    // To the end: its servers come and go beside.
    let _ports = layout.control_plane.ports.hold(layout.cluster.node_ip)?;
    let hpk = std::env::current_exe()?;
    let listener = control::listen(&home, &host)?;
    tell_parent()?;
    let result = Supervisor::new(components::all(&layout, &hpk), home.clone(), hpk, host).run(listener, hangup).await;
    // Best effort: a record that stays is recognised as stale by its socket.
    let _ = std::fs::remove_file(home.supervisor_json());
    result?;
    Ok(ExitCode::SUCCESS)
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
