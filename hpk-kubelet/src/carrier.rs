//! The link's carrier of last resort: where a node cannot dial us, `srun --overlap` in the pod's job carries the bytes.
//!
//! ```text
//!  a session is wanted, no link ─▶ wait a little for the link ─▶ srun … hpk-netns carry ─▶ link over its stdin/stdout
//!                                        └─ comes by itself: nothing to do                  └─ ends with the job
//! ```
//! One task owns which pods have a carrier. A carrier costs a Slurm step and a process on this node, so it is started
//! when somebody wants a session or a pod stays without its link, of the latter only so many; it then stays, and serves
//! whatever comes later.

use crate::executor::words::Words;
use crate::executor::{Executor, ExecutorError};
use hpk_api::ids::{JobId, PodUid};
use hpk_link::server::LinkServer;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{mpsc, oneshot};

/// A link that is on its way needs no carrier.
const ON_ITS_WAY: Duration = Duration::from_secs(3);
/// Longest wait for a carrier: Slurm starts a step.
const PATIENCE: Duration = Duration::from_secs(45);
/// Carriers at once that nobody waits for: each is a process here and a step there.
const UNASKED: usize = 32;
/// How much of srun's own words is kept, bytes.
const WORDS: u64 = 4096;

/// No link was brought to a pod. The text is for people.
#[derive(Debug, Error)]
pub enum CarryError {
    #[error("the kubelet is ending")]
    Ending,
    /// The carrier has ended.
    #[error("the pod's node cannot reach {address}, and {carrier} did not carry the link either: {why}")]
    Ended {
        /// Where links come.
        address: SocketAddr,
        /// What carries links.
        carrier: &'static str,
        why: String,
    },
    /// The carrier runs, and no link came.
    #[error("the pod's node cannot reach {address}, and {carrier} brought no link within {} s", PATIENCE.as_secs())]
    Late {
        /// Where links come.
        address: SocketAddr,
        /// What carries links.
        carrier: &'static str,
    },
}

/// Starts carriers; clones are one.
#[derive(Clone, Debug)]
pub struct Carriers {
    links: LinkServer,
    words: &'static Words,
    ask: mpsc::Sender<Ask>,
}

#[derive(Debug)]
enum Ask {
    /// Start one, if there is none; answered when it ends.
    Want {
        uid: PodUid,
        job: JobId,
        folder: PathBuf,
        ended: oneshot::Sender<String>,
    },
    /// Start one, if there is none and there are not too many.
    Offer {
        uid: PodUid,
        job: JobId,
        folder: PathBuf,
    },
    Ended {
        uid: PodUid,
        why: String,
    },
}

impl Carriers {
    /// Carriers run `netns` in the pods' jobs.
    #[must_use]
    pub fn start(links: LinkServer, executor: Arc<dyn Executor>, netns: PathBuf) -> Self {
        let (ask, asked) = mpsc::channel(64);
        let starter = Starter { links: links.clone(), executor: executor.clone(), netns, tell: ask.clone() };
        hpk_link::lasting::spawn("carriers", keep(asked, starter));
        Self { links, words: executor.words(), ask }
    }

    /// Brings a link to the pod, which runs as `job`, if that can be done: nobody waits for it.
    pub async fn offer(&self, uid: PodUid, job: JobId, folder: PathBuf) {
        let _ = self.ask.send(Ask::Offer { uid, job, folder }).await;
    }

    /// Returns when a link of the pod, which runs as `job`, stands.
    ///
    /// # Errors
    /// There is none.
    pub async fn link(&self, uid: &PodUid, job: &JobId, folder: &Path) -> Result<(), CarryError> {
        if tokio::time::timeout(ON_ITS_WAY, self.links.up(uid)).await.is_ok() {
            return Ok(());
        }
        let (ended, end) = oneshot::channel();
        let want = Ask::Want { uid: uid.clone(), job: job.clone(), folder: folder.to_path_buf(), ended };
        self.ask.send(want).await.map_err(|_| CarryError::Ending)?;
        let (address, carrier) = (self.links.address(), self.words.carrier);
        tokio::select! {
            () = self.links.up(uid) => Ok(()),
            why = end => {
                let why = why.unwrap_or_else(|_| CarryError::Ending.to_string());
                Err(CarryError::Ended { address, carrier, why })
            }
            () = tokio::time::sleep(PATIENCE) => Err(CarryError::Late { address, carrier }),
        }
    }
}

struct Starter {
    links: LinkServer,
    executor: Arc<dyn Executor>,
    netns: PathBuf,
    tell: mpsc::Sender<Ask>,
}

impl Starter {
    /// One carrier, which tells its end.
    fn start(&self, uid: &PodUid, job: &JobId, folder: &Path) -> Result<(), ExecutorError> {
        let child = self.executor.step(job, &self.netns, folder)?;
        tracing::info!(%uid, %job, "no link: it is carried");
        let (links, tell, uid) = (self.links.clone(), self.tell.clone(), uid.clone());
        tokio::spawn(async move {
            let why = carry(&links, child).await;
            tracing::info!(%uid, why, "the carrier ended");
            let _ = tell.send(Ask::Ended { uid, why }).await;
        });
        Ok(())
    }
}

async fn keep(mut asked: mpsc::Receiver<Ask>, starter: Starter) {
    let mut running: HashMap<PodUid, Vec<oneshot::Sender<String>>> = HashMap::new();
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Want { uid, job, folder, ended } => match running.get_mut(&uid) {
                Some(waiting) => {
                    waiting.retain(|w| !w.is_closed());
                    waiting.push(ended);
                }
                None => match starter.start(&uid, &job, &folder) {
                    Ok(()) => drop(running.insert(uid, vec![ended])),
                    Err(error) => drop(ended.send(error.to_string())),
                },
            },
            Ask::Offer { uid, .. } if running.contains_key(&uid) => {}
            Ask::Offer { uid, .. } if running.len() >= UNASKED => {
                tracing::debug!(%uid, carriers = running.len(), "no carrier: there are enough");
            }
            Ask::Offer { uid, job, folder } => match starter.start(&uid, &job, &folder) {
                Ok(()) => drop(running.insert(uid, Vec::new())),
                Err(error) => tracing::warn!(%uid, error = &error as &dyn std::error::Error, "no carrier"),
            },
            Ask::Ended { uid, why } => {
                for waiting in running.remove(&uid).unwrap_or_default() {
                    let _ = waiting.send(why.clone());
                }
            }
        }
    }
}

/// Serves the link over a step until either ends.
async fn carry(links: &LinkServer, mut child: Child) -> String {
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return "it has no standard streams".to_owned();
    };
    let stderr = child.stderr.take();
    let words = tokio::spawn(async move {
        let mut text = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(WORDS).read_to_end(&mut text).await;
            // What comes after is read and forgotten, so that srun is not held up.
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    });
    let why = links.carry(Pipes { stdin, stdout }).await;
    // Its streams are closed: the step ends by itself, and is ended if it does not.
    if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    match tokio::time::timeout(Duration::from_secs(1), words).await {
        Ok(Ok(words)) if !words.is_empty() => words,
        _ => why,
    }
}

/// A process's standard streams as one.
struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl AsyncRead for Pipes {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, into)
    }
}

impl AsyncWrite for Pipes {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}
