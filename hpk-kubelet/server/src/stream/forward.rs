//! port-forward: each forwarded connection becomes one port-forward request to the supervisor.

use super::spdy::connection::{Connection, Incoming};
use super::upgrade::{Channels, Protocol};
use super::{STREAM_CREATION, Stall, ws};
use crate::backend::{ConnectError, FrameReader, FrameWriter, LOST, Stream, SupervisorStream};
use bytes::Bytes;
use futures::future::BoxFuture;
use hpk_api::control::{Request, StreamEnd};
use hpk_api::frame::channel;
use hpk_control::stream_end;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Opens a new connection to the pod's supervisor.
pub(crate) type Dial = Arc<dyn Fn() -> BoxFuture<'static, Result<SupervisorStream, ConnectError>> + Send + Sync>;

/// The pod, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// Input that waits per forwarded connection of a WebSocket.
const QUEUE: usize = 8;

/// Serves an upgraded connection to its end. `ports` are those of the query (WebSocket channels only).
pub(crate) async fn serve(protocol: Protocol, io: Box<dyn Stream>, pod: Pod, ports: Vec<u16>, dial: Dial) {
    match protocol {
        Protocol::SpdyForward => spdy(io, pod, dial).await,
        Protocol::WebSocketTunnel => {
            let inner = ws::tunnel(ws::accept(io).await);
            spdy(Box::new(inner), pod, dial).await;
        }
        Protocol::WebSocket(channels) => websocket(channels, io, pod, ports, dial).await,
        // upgrade::forward agrees on nothing else.
        Protocol::Spdy(_) => {}
    }
}

async fn open(dial: &Dial, port: u16) -> Result<(FrameReader, FrameWriter), String> {
    let stream = dial().await.map_err(|e| e.to_string())?;
    let (_, reader, writer) =
        hpk_control::stream::request(stream, &Request::PortForward { port }).await.map_err(|e| e.to_string())?;
    Ok((reader, writer))
}

/// Copies both ways until the port's side has closed, or the client has and nothing comes back any more.
async fn copy<O, OFut>(port: u16, dial: &Dial, mut input: mpsc::Receiver<Bytes>, mut output: O) -> Result<(), String>
where
    O: FnMut(Bytes) -> OFut,
    OFut: Future<Output = std::io::Result<()>>,
{
    let (mut reader, mut writer) = open(dial, port).await?;
    let up = async {
        while let Some(payload) = input.recv().await {
            if writer.send(channel::STDIN, &payload).await.is_err() {
                // The port's side is closed for writing; what it says still counts.
                break;
            }
        }
        let _ = writer.close_channel(channel::STDIN).await;
        std::future::pending::<()>().await;
    };
    let down = async {
        loop {
            match reader.next().await {
                Ok(Some((channel::STDOUT, payload))) => {
                    if output(payload).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(Some((channel::CLOSE, payload))) if payload.as_ref() == [channel::STDOUT] => return Ok(()),
                Ok(Some((channel::ERROR, payload))) => {
                    return match stream_end(&payload) {
                        StreamEnd::Failed { message } => Err(message),
                        _ => Ok(()),
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err(LOST.to_owned()),
                Err(e) => return Err(e.to_string()),
            }
        }
    };
    tokio::select! {
        result = down => result,
        () = up => Ok(()),
    }
}

fn failure(pod: &Pod, port: u16, cause: &str) -> String {
    format!("error forwarding port {port} to pod {}, uid {}: {cause}", pod.name, pod.uid)
}

/// A data and an error stream of one forwarded connection, until both are there.
#[derive(Default)]
struct Pair {
    data: Option<Incoming>,
    error: Option<Incoming>,
}

async fn spdy(io: Box<dyn Stream>, pod: Pod, dial: Dial) {
    let Ok(mut connection) = Connection::start(io) else { return };
    let tasks = TaskTracker::new();
    // Half pairs, with the time at which they are given up.
    let mut pairs: HashMap<String, (Pair, tokio::time::Instant)> = HashMap::new();
    loop {
        let next_expiry = pairs.values().map(|(_, dies)| *dies).min();
        let expiry = async {
            match next_expiry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let stream = tokio::select! {
            stream = connection.streams.recv() => stream,
            () = expiry => {
                give_up(&mut pairs).await;
                continue;
            }
        };
        let Some(stream) = stream else { break };
        match accept(&mut pairs, stream).await {
            Some((data, error, port)) => {
                let (pod, dial, closed) = (pod.clone(), dial.clone(), connection.closed.clone());
                tasks.spawn(one(data, error, port, pod, dial, closed));
            }
            None => continue,
        }
    }
    tasks.close();
    tasks.wait().await;
    connection.close().await;
}

async fn give_up(pairs: &mut HashMap<String, (Pair, tokio::time::Instant)>) {
    let now = tokio::time::Instant::now();
    let expired: Vec<String> = pairs.iter().filter(|(_, (_, dies))| *dies <= now).map(|(id, _)| id.clone()).collect();
    for id in expired {
        if let Some((Pair { error: Some(error), .. }, _)) = pairs.remove(&id) {
            let text = format!("(request={id}) timed out waiting for streams");
            let _ = error.out.data(text.as_bytes()).await;
            let _ = error.out.finish().await;
        }
    }
}

/// Files a new stream; returns the pair that it completes.
async fn accept(
    pairs: &mut HashMap<String, (Pair, tokio::time::Instant)>,
    stream: Incoming,
) -> Option<(Incoming, Incoming, u16)> {
    let port = stream.header("port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
    let kind = stream.header("streamtype").unwrap_or_default().to_owned();
    if port.is_none() || !matches!(kind.as_str(), "data" | "error") {
        // A stream without a valid port or type is refused, as upstream does.
        let _ = stream.out.reset().await;
        return None;
    }
    let id = match stream.header("requestid") {
        Some(id) if !id.is_empty() => id.to_owned(),
        // Clients before request ids open error first, then data with the next id.
        _ if kind == "error" => stream.out.id.to_string(),
        _ => stream.out.id.saturating_sub(2).to_string(),
    };
    let deadline = tokio::time::Instant::now() + STREAM_CREATION;
    let (pair, _) = pairs.entry(id.clone()).or_insert_with(|| (Pair::default(), deadline));
    let slot = if kind == "data" { &mut pair.data } else { &mut pair.error };
    if slot.is_some() {
        let _ = stream.out.reset().await;
        return None;
    }
    *slot = Some(stream);
    if pair.data.is_none() || pair.error.is_none() {
        return None;
    }
    let (pair, _) = pairs.remove(&id)?;
    let (data, error) = (pair.data?, pair.error?);
    let port = data.header("port")?.parse().ok()?;
    Some((data, error, port))
}

async fn one(data: Incoming, error: Incoming, port: u16, pod: Pod, dial: Dial, closed: CancellationToken) {
    let out = data.out.clone();
    let copying = copy(port, &dial, data.input, |payload| {
        let out = out.clone();
        async move { out.data(&payload).await }
    });
    let result = tokio::select! {
        result = copying => result,
        () = closed.cancelled() => return,
    };
    match result {
        Ok(()) => {
            let _ = data.out.finish().await;
            let _ = error.out.finish().await;
        }
        Err(cause) => {
            tracing::debug!(pod = pod.name, port, "port-forward: {cause}");
            let _ = error.out.data(failure(&pod, port, &cause).as_bytes()).await;
            // The client sees the text, then both streams end; resetting them first could overtake it.
            let _ = error.out.finish().await;
            let _ = data.out.reset().await;
        }
    }
}

async fn websocket(channels: Channels, io: Box<dyn Stream>, pod: Pod, ports: Vec<u16>, dial: Dial) {
    let (mut sender, mut receiver) = ws::split(ws::accept(io).await, channels);
    let mut inputs = Vec::new();
    let mut jobs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        // Channels are one byte: data 2i, error 2i + 1.
        let Ok(data) = u8::try_from(index * 2) else { return };
        for channel in [data, data + 1] {
            if sender.send(channel, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        let (queue, input) = mpsc::channel(QUEUE);
        inputs.push(queue);
        jobs.push((data, port, input));
    }
    let sender = Arc::new(Mutex::new(sender));
    let copies = futures::future::join_all(jobs.into_iter().map(|(data, port, input)| {
        let (sender, dial, pod) = (sender.clone(), dial.clone(), pod.clone());
        async move {
            let to = sender.clone();
            let result = copy(port, &dial, input, |payload| {
                let to = to.clone();
                async move { to.lock().await.send(data, &payload).await.map_err(std::io::Error::other) }
            })
            .await;
            if let Err(cause) = result {
                let _ = sender.lock().await.send(data + 1, failure(&pod, port, &cause).as_bytes()).await;
            }
        }
    }));
    let stall = Stall::default();
    let read = async {
        while let Some((channel, payload)) = receiver.next().await {
            if channel % 2 == 0
                && let Some(queue) = inputs.get(usize::from(channel / 2))
            {
                let _ = stall.during(queue.send(payload)).await;
            }
        }
    };
    let pings = async {
        loop {
            stall.told().await;
            if sender.lock().await.ping().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = copies => sender.lock().await.close().await,
        () = read => {}
        () = pings => {}
    }
}
