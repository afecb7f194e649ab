//! The control socket: `supervisor.sock`, the contract of [`hpk_api::control`].
//!
//! Owns the socket, its connections and the bytes between a client and a process. Decides nothing about the
//! pod: whatever touches the pod's state goes to the driver as a [`request::DriverRequest`].
//!
//! ```text
//! accept ─▶ peer is our user? ─▶ hello ─▶ request ─┬─▶ status, stats, stop, update, check   one answer (or a line per change)
//!                                                  ├─▶ exec, attach                  frames, driven here
//!                                                  ├─▶ port-forward, dial            frames ◀─▶ TCP in the pod's network
//!                                                  └─▶ logs                          frames, a thread of its own: files
//! ```
//! One task per connection, so that back-pressure is the connection's; every buffer has a fixed size. A client
//! that is gone (its side of the socket closed) ends its session at once, with the process that it had started.

mod attach;
mod check;
pub mod ctl;
mod exec;
mod forward;
mod handshake;
mod logs;
mod rank;
pub mod request;
mod wire;

use handshake::Handshake;
use hpk_api::control::{Answer, ControlError, ErrorCode, PodStats, Reply, Request};
use hpk_api::state::PodState;
use jiff::Timestamp;
use request::DriverRequest;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

/// Connections served at once; more wait in the listener's queue.
const MAX_CONNECTIONS: usize = 512;
/// How long the nodes of an MPI step may take to tell what they use.
const MEASURED: Duration = Duration::from_secs(1);
/// Clients that read logs at once: each has a thread.
const MAX_LOG_READERS: usize = 64;

/// What the server needs of the supervisor.
#[derive(Clone, Debug)]
pub struct Context {
    /// To the driver.
    pub driver: mpsc::Sender<DriverRequest>,
    /// The pod's state, as the driver last published it.
    pub state: watch::Receiver<Arc<PodState>>,
    /// The pump of the containers' output.
    pub log: hpk_log::LogHandle,
    /// The clients that are still being served.
    pub sessions: Sessions,
    /// hpk-netns' socket.
    pub netns: PathBuf,
}

/// Counts the sessions that stream a container's output, so that the supervisor can let its last clients read to the
/// end before it goes.
#[derive(Clone, Debug)]
pub struct Sessions {
    all: Arc<Semaphore>,
    log_readers: Arc<Semaphore>,
}

impl Default for Sessions {
    fn default() -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        Self { all: slots(MAX_CONNECTIONS), log_readers: slots(MAX_LOG_READERS) }
    }
}

impl Sessions {
    /// Waits until no session is left, at most `limit`. To be asked when all containers have ended: what sessions wait
    /// for then is only their clients.
    pub async fn finished(&self, limit: Duration) {
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        // A client that does not read for so long loses the rest.
        let _ = tokio::time::timeout(limit, self.all.acquire_many(all)).await;
    }

    /// None: so many sessions are open that no more can be counted, or the supervisor is about to go.
    fn begin(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.all).try_acquire_owned().ok()
    }

    /// A reader of logs; None: there are too many.
    fn read_logs(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.log_readers).try_acquire_owned().ok()
    }
}

/// Makes the socket: mode 0600, replacing one that a former process left behind.
///
/// # Errors
/// As bind(2): most likely the folder is missing or the path is longer than 107 bytes.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    hpk_layout::remove_stale_socket(path)?;
    let listener = UnixListener::bind(path)?;
    // The folder is 0700, so nobody else can come in between; peers are checked all the same.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts connections for ever. Connections that are open when this is dropped go on until they end by
/// themselves or the runtime ends.
pub async fn serve(listener: UnixListener, context: Context) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let ours = nix::unistd::geteuid().as_raw();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                if hpk_sys::peer::of(&stream).is_ok_and(|peer| peer.uid == ours) {
                    let context = context.clone();
                    tokio::spawn(async move {
                        connection(stream, context).await;
                        drop(slot);
                    });
                }
            }
            // Out of descriptors or memory: children may give some back; nothing tells when.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(stream: UnixStream, context: Context) {
    let mut handshake = Handshake::new(stream);
    let request = match handshake.request().await {
        Ok(Some(request)) => request,
        // It went away before it asked for anything.
        Ok(None) => return,
        Err(error) => return handshake.refuse(error).await,
    };
    let session = match &request {
        Request::Logs(_) | Request::Exec(_) | Request::Attach(_) => context.sessions.begin(),
        _ => None,
    };
    match request {
        Request::Status { watch } => status(handshake, context.state, watch).await,
        Request::Logs(options) => logs::run(handshake, context, options, session).await,
        Request::Exec(options) => exec::run(handshake, context, options).await,
        Request::Attach(options) => attach::run(handshake, context, options).await,
        Request::PortForward { port } => forward::port(handshake, port, &context).await,
        Request::Dial { address } => forward::dial(handshake, address).await,
        Request::Stats => {
            measure_steps(&context).await;
            let answer = ask(&context, |answer| DriverRequest::Stats { answer }).await;
            let stats = answer.map(|sample| PodStats {
                at: Some(Timestamp::now()),
                pod: sample.pod,
                containers: sample.containers,
                volumes: sample.volumes,
            });
            handshake.finish(stats.map(Answer::Stats)).await;
        }
        Request::Probes => {
            let answer = ask(&context, |answer| DriverRequest::Probes { answer }).await;
            handshake.finish(answer.map(Answer::Probes)).await;
        }
        Request::CheckNetwork => {
            let checked = check::run(&context.netns).await;
            handshake.finish(checked.map(|()| Answer::Done)).await;
        }
        Request::Stop { grace_period_seconds } => {
            let answer = ask(&context, |answer| DriverRequest::Stop { grace_period_seconds, answer }).await;
            handshake.finish(answer.map(|()| Answer::Done)).await;
        }
        Request::Update(update) => {
            let update = Box::new(update);
            let answer = ask(&context, |answer| DriverRequest::Update { update, answer }).await;
            handshake.finish(answer.map(|()| Answer::Done)).await;
        }
    }
}

/// The state once, or after every change too. A watcher that reads slowly misses states in between, never the last.
async fn status(mut handshake: Handshake, mut state: watch::Receiver<Arc<PodState>>, watch: bool) {
    let now = PodState::clone(&state.borrow_and_update());
    if !handshake.answer(&Reply::Ok(Answer::Status(Box::new(now)))).await || !watch {
        return;
    }
    let Ok(gone) = wire::Gone::watch(&handshake.stream) else { return };
    loop {
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = gone.wait() => return,
        }
        let now = Arc::clone(&state.borrow_and_update());
        if !handshake.line(&*now).await {
            return;
        }
    }
}

/// Has every node of MPI steps tell what it uses; one that does not in time is counted as it was.
async fn measure_steps(context: &Context) {
    let (done, measured) = oneshot::channel();
    if context.driver.send(DriverRequest::MeasureSteps { done }).await.is_ok() {
        let _ = tokio::time::timeout(MEASURED, measured).await;
    }
}

/// Asks the driver and waits for its answer.
async fn ask<T>(
    context: &Context,
    request: impl FnOnce(request::Answer<T>) -> DriverRequest,
) -> Result<T, ControlError> {
    let (answer, answered) = oneshot::channel();
    let ending = || ControlError { code: ErrorCode::Conflict, message: "the pod's supervisor is ending".to_owned() };
    context.driver.send(request(answer)).await.map_err(|_| ending())?;
    answered.await.unwrap_or_else(|_| Err(ending()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_clients_are_waited_for_but_not_for_ever() {
        let sessions = Sessions::default();
        let long = Duration::from_secs(60);
        sessions.finished(long).await;
        let reading = sessions.begin();
        assert!(reading.is_some());
        let waiting = tokio::spawn({
            let sessions = sessions.clone();
            async move { sessions.finished(long).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(reading);
        waiting.await.unwrap();
        let _stuck = sessions.begin();
        sessions.finished(Duration::from_millis(10)).await;
    }
}
