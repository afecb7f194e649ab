//! `/containerLogs`: what is asked for, whether there is a log, and where its bytes come from.
//!
//! A running pod's log comes through its supervisor, which knows of every byte and can follow; the log of a
//! pod without one is read from the pod's folder. A client that is still reading when the supervisor ends gets the
//! rest from there too:
//!
//! ```text
//!   supervisor ── bytes, positions ──▶ client
//!       └─ lost ─▶ files, from the last position on ─┬─ the instance has ended ─▶ the log's end
//!                                                    └─ nobody knows that it has ─▶ a broken response, never a false end
//! ```

mod asked;

use crate::backend::Backend;
use crate::backend::LOST;
use crate::respond::{Body, text};
use crate::route::Query;
pub(crate) use asked::has_container;
use asked::{instance, options, status_of};
use bytes::Bytes;
use hpk_api::control::{LogOptions, LogPosition, Request, StreamEnd};
use hpk_api::frame::channel;
use hpk_api::state::{PodState, RunState};
use hpk_control::{RequestError, stream_end};
use hpk_log::{LogReader, ReadError, ReadOptions, ReadStatus};
use hpk_sys::beneath;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Parts of a log that wait for the client; each at most 64 KiB.
const QUEUE: usize = 4;

/// Serves the request.
pub(crate) async fn serve<B: Backend>(
    backend: &Arc<B>,
    namespace: &str,
    pod_name: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let options = match options(query, container, Timestamp::now()) {
        Ok(options) => options,
        Err(bad) => return bad.response(),
    };
    let Some(pod) = backend.find_pod(namespace, pod_name).await else {
        return text(StatusCode::NOT_FOUND, format!("pod {pod_name:?} does not exist"));
    };
    if !has_container(&pod, container) {
        return text(StatusCode::NOT_FOUND, format!("container {container:?} not found in pod {pod_name:?}"));
    }
    let restart_count = match instance(&pod, container, options.previous) {
        Ok(count) => count,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let running = status_of(&pod, container).and_then(|s| s.state.as_ref()).is_some_and(|s| s.running.is_some());
    let files = Files { pod: backend.pod_folder(&uid), options, running };
    match from_supervisor(backend, &uid, restart_count, &files).await {
        Ok(body) => streaming(body),
        Err(Some(refused)) => text(StatusCode::BAD_REQUEST, refused),
        Err(None) => match files.whole(restart_count).await {
            Ok(body) => streaming(body),
            Err(e) => text(StatusCode::BAD_REQUEST, e),
        },
    }
}

fn streaming(parts: mpsc::Receiver<std::io::Result<Bytes>>) -> Response<Body> {
    let stream = futures::stream::unfold(parts, |mut parts| async move {
        let Some(part) = parts.recv().await else {
            // Lets the connection write what it has, so that the body's end has a TLS record of its own: the API
            // server's log over WebSocket forgets bytes that it reads together with the end (wsstream.messageCopy).
            tokio::task::yield_now().await;
            return None;
        };
        Some((part.map(Frame::data), parts))
    });
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

type Parts = mpsc::Sender<std::io::Result<Bytes>>;

/// Through the supervisor. `Err(None)`: there is none to be asked.
async fn from_supervisor<B: Backend>(
    backend: &Arc<B>,
    uid: &str,
    restart_count: u32,
    files: &Files,
) -> Result<mpsc::Receiver<std::io::Result<Bytes>>, Option<String>> {
    let stream = match backend.open_supervisor(uid).await {
        Ok(stream) => stream,
        // What is in the files already needs no dear way to the pod; following does.
        Err(_) if !files.options.follow || files.has_ended(restart_count).await => return Err(None),
        Err(_) => backend.open_session(uid).await.map_err(|_| None)?,
    };
    let (_, mut frames, writer) =
        match hpk_control::stream::request(stream, &Request::Logs(files.options.clone())).await {
            Ok(answered) => answered,
            Err(RequestError::Refused(e)) => return Err(Some(e.message)),
            Err(e) => {
                tracing::debug!(uid, "logs through the supervisor failed, reading the files: {e}");
                return Err(None);
            }
        };
    let (sender, parts) = mpsc::channel(QUEUE);
    let files = files.clone();
    tokio::spawn(async move {
        // Kept: dropping it would be a half-close.
        let _writer = writer;
        // How far it has come, and what was sent after that.
        let (mut position, mut beyond) = (None, 0);
        let lost = loop {
            let part = tokio::select! {
                part = frames.next() => part,
                // The client went away: closing the connection tells the supervisor.
                () = sender.closed() => return,
            };
            match part {
                Ok(Some((channel::STDOUT | channel::STDERR, bytes))) => {
                    beyond += bytes.len();
                    if sender.send(Ok(bytes)).await.is_err() {
                        return;
                    }
                }
                Ok(Some((channel::POSITION, payload))) => {
                    (position, beyond) = (serde_json::from_slice::<LogPosition>(&payload).ok(), 0);
                }
                Ok(Some((channel::ERROR, payload))) => {
                    if let StreamEnd::Failed { message } = stream_end(&payload) {
                        let _ = sender.send(Ok(Bytes::from(format!("{message}\n")))).await;
                    }
                    return;
                }
                Ok(Some(_)) => {}
                // A cut link or an ended supervisor: the client must not take it for the log's end.
                Ok(None) => break LOST.to_owned(),
                Err(e) => break e.to_string(),
            }
        };
        match position {
            Some(position) => files.go_on(position, beyond, lost, sender).await,
            // A supervisor of a version that tells none.
            None => drop(sender.send(Err(std::io::Error::other(lost))).await),
        }
    });
    Ok(parts)
}

/// A log in the pod's folder, read without its supervisor; grows no more, as far as anybody can tell here.
#[derive(Clone)]
struct Files {
    pod: PathBuf,
    options: LogOptions,
    /// As far as the kubelet knew when it was asked.
    running: bool,
}

impl Files {
    /// The container's logs. A pod may have put links in the way, so the folder is held open while it is read.
    fn folder(&self) -> impl FnOnce() -> std::io::Result<(File, PathBuf)> + Send + use<> {
        let (pod, below) = (self.pod.clone(), Path::new(hpk_layout::pod::LOGS).join(&self.options.container));
        move || {
            let held = beneath::folder(&pod, &below)?;
            let path = beneath::path(&held);
            Ok((held, path))
        }
    }

    /// Whether the instance will write no more: the kubelet knew it, or the supervisor left word.
    async fn has_ended(&self, restart_count: u32) -> bool {
        if !self.running {
            return true;
        }
        let (pod, container) = (self.pod.clone(), self.options.container.clone());
        let read = move || has_ended(&pod, &container, restart_count);
        tokio::task::spawn_blocking(read).await.unwrap_or(false)
    }

    /// A log that nobody follows through its supervisor.
    async fn whole(&self, restart_count: u32) -> Result<mpsc::Receiver<std::io::Result<Bytes>>, String> {
        let (folder, options) = (self.folder(), ReadOptions::from(&self.options));
        // Asked before reading: what is read after it is then complete.
        let ended = !self.options.follow || self.has_ended(restart_count).await;
        let reader = tokio::task::spawn_blocking(move || {
            let (held, path) = folder().map_err(|e| format!("the container's logs cannot be read: {e}"))?;
            let reader = LogReader::open(&path, restart_count, options).map_err(|e| e.to_string())?;
            Ok::<_, String>((held, reader))
        });
        let (held, reader) = reader.await.map_err(|e| e.to_string())??;
        let (sender, parts) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let limit_reached = pass_on(reader, 0, &sender);
            drop(held);
            if !ended && limit_reached == Some(false) {
                let _ = sender.blocking_send(Err(std::io::Error::other(LOST)));
            }
        });
        Ok(parts)
    }

    /// The rest after a position and so many bytes; then, unless the log is known to be at its end, that it was lost.
    async fn go_on(&self, position: LogPosition, beyond: usize, lost: String, sender: Parts) {
        let ended = self.has_ended(position.restart_count).await;
        let (folder, options) = (self.folder(), ReadOptions::from(&self.options));
        let work = move || {
            let (_held, path) = match folder() {
                Ok(folder) => folder,
                Err(e) => return drop(sender.blocking_send(Err(e))),
            };
            let rest = LogReader::resume(&path, options, &position);
            let limit_reached = match rest {
                Ok(reader) => pass_on(reader, beyond, &sender),
                Err(e) => return fail(&sender, e),
            };
            if !ended && limit_reached == Some(false) {
                let _ = sender.blocking_send(Err(std::io::Error::other(lost)));
            }
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

fn fail(sender: &Parts, error: ReadError) {
    let _ = sender.blocking_send(Err(std::io::Error::other(error)));
}

/// Sends what the reader has, without its first `skip` bytes. None when nobody listens any more or it failed; else
/// whether the limit was reached.
fn pass_on(mut reader: LogReader, mut skip: usize, sender: &Parts) -> Option<bool> {
    loop {
        let mut out = Vec::new();
        let status = reader.read(&mut out);
        let known = skip.min(out.len());
        skip -= known;
        let bytes = Bytes::from(out).slice(known..);
        if !bytes.is_empty() && sender.blocking_send(Ok(bytes)).is_err() {
            return None;
        }
        match status {
            Ok(ReadStatus::More) => {}
            Ok(status) => return Some(status == ReadStatus::LimitReached),
            Err(e) => {
                fail(sender, e);
                return None;
            }
        }
    }
}

/// Reads the supervisor's last word on a container.
fn has_ended(pod: &Path, container: &str, restart_count: u32) -> bool {
    /// Most of the status that is read, in bytes.
    const MOST: u64 = 64 << 20;
    let status = beneath::read(pod, Path::new(hpk_layout::pod::STATUS), MOST).ok();
    let Some(state) = status.and_then(|b| serde_json::from_slice::<PodState>(&b).ok()) else { return false };
    let found = state.find(container);
    state.finished
        || found.is_some_and(|c| {
            c.restart_count > restart_count
                || (c.restart_count == restart_count
                    && match &c.state {
                        RunState::Running { .. } => false,
                        RunState::Terminated(_) => true,
                        // In back-off; else a word from before its start.
                        RunState::Waiting { .. } => c.last_termination.is_some(),
                    })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_log_is_not_sent_together_with_its_last_bytes() {
        let (sender, parts) = mpsc::channel(1);
        sender.send(Ok(Bytes::from_static(b"last"))).await.unwrap();
        drop(sender);
        let mut body = streaming(parts).into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "last");
        // Pending once: the connection flushes then.
        assert!(futures::poll!(body.frame()).is_pending());
        assert!(body.frame().await.is_none());
    }
}
