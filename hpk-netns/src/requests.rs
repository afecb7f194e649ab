//! `netns.sock`: what the supervisor asks of the node's side. One connection is one request, one JSON line with
//! descriptors, and one line of answer.

use hpk_api::net::{NetnsRequest, TunAnswer, TunOffer};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// How long the supervisor may take from connecting to its request.
const OFFER: Duration = Duration::from_secs(10);

/// A request, and who waits for the answer.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: NetnsRequest,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) stream: UnixStream,
}

impl Asked {
    /// The asker's network namespace as a path on this node; the asker is the pod's supervisor.
    pub(crate) fn sandbox(&self) -> String {
        let pid = self.stream.peer_cred().ok().and_then(|c| c.pid());
        pid.map(|pid| format!("/proc/{pid}/ns/net")).unwrap_or_default()
    }
}

/// Takes requests from our own user only.
pub(crate) async fn accept(listener: UnixListener, asked: mpsc::Sender<Asked>) {
    while let Ok((stream, _)) = listener.accept().await {
        let ours = stream.peer_cred().is_ok_and(|c| c.uid() == nix::unistd::getuid().as_raw());
        if !ours {
            continue;
        }
        match tokio::time::timeout(OFFER, receive(&stream)).await {
            Ok(Ok((request, fds))) => {
                if asked.send(Asked { request, fds, stream }).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => hpk_api::say!("hpk-netns: the supervisor's request: {error}"),
            Err(_) => hpk_api::say!("hpk-netns: the supervisor connected and asked for nothing"),
        }
    }
}

/// One JSON line with its descriptors.
///
/// # Errors
/// The stream's, or a line that is no request.
pub(crate) async fn receive(stream: &UnixStream) -> io::Result<(NetnsRequest, Vec<OwnedFd>)> {
    let mut line = Vec::new();
    let mut descriptors = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let (n, fds) = stream
            .async_io(Interest::READABLE, || hpk_sys::fdpass::receive(stream, &mut buffer).map_err(io::Error::from))
            .await?;
        descriptors.extend(fds);
        line.extend_from_slice(buffer.get(..n).unwrap_or_default());
        if n == 0 || line.len() > hpk_api::control::MAX_LINE {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        if line.ends_with(b"\n") {
            return Ok((serde_json::from_slice(&line)?, descriptors));
        }
    }
}

/// A TUN, from whoever has nothing else to ask for.
///
/// # Errors
/// As [`receive`], or it is another request.
pub async fn receive_tun(stream: &UnixStream) -> io::Result<(TunOffer, OwnedFd)> {
    match receive(stream).await? {
        (NetnsRequest::Tun(offer), fds) => match fds.into_iter().next() {
            Some(tun) => Ok((*offer, tun)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "the TUN's descriptor did not come")),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no TUN is offered")),
    }
}

/// The answer, whoever still waits for it.
pub(crate) async fn answer(mut stream: UnixStream, answer: &TunAnswer) {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    let _ = stream.write_all(&line).await;
}
