//! exec and attach: a client's streams joined to a session of the supervisor.

use super::spdy::connection::{Connection, Incoming, Writer};
use super::status::{ErrorFormat, error_payload};
use super::upgrade::{Channels, Protocol, RemoteVersion};
use super::{LINGER, STREAM_CREATION, Stall, ws};
use crate::backend::{FrameReader, FrameWriter, LOST, Stream};
use bytes::Bytes;
use hpk_api::control::{StreamEnd, TerminalSize};
use hpk_api::frame::channel;
use hpk_control::stream_end;
use tokio::sync::mpsc;

/// Streams that the caller asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

/// Input on its way to the supervisor; bounded, so that a process that does not read slows its client.
const QUEUE: usize = 4;

/// A supervisor's session, or the reason why there is none: told on the error stream, since the connection
/// has been upgraded by then.
pub(crate) type Session = Result<(FrameReader, FrameWriter), String>;

/// Runs a session on an upgraded connection to its end.
pub(crate) async fn serve<F>(protocol: Protocol, io: Box<dyn Stream>, wanted: Wanted, session: F)
where
    F: Future<Output = Session>,
{
    match protocol {
        Protocol::WebSocket(channels) => websocket(channels, io, wanted, session).await,
        Protocol::Spdy(version) => spdy(version, io, wanted, session).await,
        // upgrade::remote agrees on nothing else.
        Protocol::WebSocketTunnel | Protocol::SpdyForward => {}
    }
}

/// Where output goes.
enum Output {
    WebSocket(ws::Sender),
    Spdy { stdout: Option<Writer>, stderr: Option<Writer>, error: Writer },
}

impl Output {
    /// An error means that the client is gone.
    async fn data(&mut self, channel: u8, payload: &[u8]) -> Result<(), ()> {
        match self {
            Self::WebSocket(sender) => sender.send(channel, payload).await.map_err(drop),
            Self::Spdy { stdout, stderr, .. } => match if channel == channel::STDOUT { stdout } else { stderr } {
                Some(stream) => stream.data(payload).await.map_err(drop),
                None => Ok(()),
            },
        }
    }

    /// Fails once the client is gone; a SPDY connection sees to that itself.
    async fn ping(&mut self) -> Result<(), ()> {
        match self {
            Self::WebSocket(sender) => sender.ping().await.map_err(drop),
            Self::Spdy { .. } => Ok(()),
        }
    }

    /// The last word, after all output.
    async fn finish(&mut self, end: &StreamEnd, format: ErrorFormat) -> Result<(), ()> {
        let payload = error_payload(end, format);
        match self {
            Self::WebSocket(sender) => {
                if let Some(payload) = payload {
                    sender.send(channel::ERROR, &payload).await.map_err(drop)?;
                }
                sender.close().await;
                Ok(())
            }
            Self::Spdy { stdout, stderr, error } => {
                if let Some(payload) = payload {
                    error.data(&payload).await.map_err(drop)?;
                }
                for stream in [stdout.as_ref(), stderr.as_ref(), Some(&*error)].into_iter().flatten() {
                    stream.finish().await.map_err(drop)?;
                }
                Ok(())
            }
        }
    }
}

/// Joins input, output and session until the session ends or the client goes.
async fn join<F>(
    session: F,
    mut input: mpsc::Receiver<(u8, Bytes)>,
    mut output: Output,
    format: ErrorFormat,
    stall: Stall,
    gone: impl Future<Output = ()>,
) where
    F: Future<Output = Session>,
{
    tokio::pin!(gone);
    let whole = async {
        let (mut reader, mut writer) = match session.await {
            Ok(halves) => halves,
            Err(message) => {
                let _ = output.finish(&StreamEnd::Failed { message }, format).await;
                return;
            }
        };
        let feed = async {
            while let Some((channel, payload)) = input.recv().await {
                let sent = match channel {
                    channel::CLOSE => writer.close_channel(payload.first().copied().unwrap_or(0)).await,
                    _ => writer.send(channel, &payload).await,
                };
                if sent.is_err() {
                    // The session is ending; its end is on the other half.
                    break;
                }
            }
            // The writer stays open: closing it would mean that the client went away.
            std::future::pending::<()>().await;
        };
        let drain = async {
            loop {
                let frame = tokio::select! {
                    frame = reader.next() => frame,
                    () = stall.told() => {
                        output.ping().await?;
                        continue;
                    }
                };
                match frame {
                    Ok(Some((channel @ (channel::STDOUT | channel::STDERR), payload))) => {
                        output.data(channel, &payload).await?;
                    }
                    Ok(Some((channel::ERROR, payload))) => return Ok(stream_end(&payload)),
                    Ok(Some(_)) => {}
                    Ok(None) => {
                        return Ok(StreamEnd::Failed { message: LOST.to_owned() });
                    }
                    Err(e) => return Ok(StreamEnd::Failed { message: e.to_string() }),
                }
            }
        };
        let end: Result<StreamEnd, ()> = tokio::select! {
            end = drain => end,
            () = feed => return,
        };
        if let Ok(end) = end {
            let _ = output.finish(&end, format).await;
        }
    };
    // Dropping the session's halves closes its connection: the supervisor ends what it ran for this client.
    tokio::select! {
        () = whole => {}
        () = &mut gone => return,
    }
    // Input that still comes is for nobody; a full queue would keep the client's good-bye from being read.
    drop(input);
    let _ = tokio::time::timeout(LINGER, gone).await;
}

/// Whether a payload of the resize channel is one; what is not is left out, as upstream does.
fn is_size(payload: &[u8]) -> bool {
    serde_json::from_slice::<TerminalSize>(payload).is_ok()
}

async fn websocket<F>(channels: Channels, io: Box<dyn Stream>, wanted: Wanted, session: F)
where
    F: Future<Output = Session>,
{
    let (mut sender, mut receiver) = ws::split(ws::accept(io).await, channels);
    // Tells the client that the connection stands (upstream's createWebSocketStreams).
    let first = if wanted.stdout {
        channel::STDOUT
    } else if wanted.stderr {
        channel::STDERR
    } else {
        channel::ERROR
    };
    if sender.send(first, &[]).await.is_err() {
        return;
    }
    let (queue, input) = mpsc::channel(QUEUE);
    let stall = Stall::default();
    let told = stall.clone();
    let read = async move {
        while let Some((channel, payload)) = receiver.next().await {
            let forward = match channel {
                channel::STDIN => wanted.stdin && !payload.is_empty(),
                channel::RESIZE => wanted.tty && is_size(&payload),
                channel::CLOSE => channels.version >= 5 && payload.as_ref() == [channel::STDIN],
                _ => false,
            };
            // Once the session is over its queue is gone; what still comes is read and dropped until the
            // client hangs up.
            if forward {
                let _ = told.during(queue.send((channel, payload))).await;
            }
        }
    };
    join(session, input, Output::WebSocket(sender), channels.error_format(), stall, read).await;
}

/// The streams of one SPDY client, by their type.
#[derive(Default)]
struct Streams {
    error: Option<Incoming>,
    stdin: Option<Incoming>,
    stdout: Option<Incoming>,
    stderr: Option<Incoming>,
    resize: Option<Incoming>,
}

async fn collect(connection: &mut Connection, mut missing: usize) -> Option<Streams> {
    let mut streams = Streams::default();
    while missing > 0 {
        let stream = connection.streams.recv().await?;
        let slot = match stream.header("streamtype") {
            Some("error") => &mut streams.error,
            Some("stdin") => &mut streams.stdin,
            Some("stdout") => &mut streams.stdout,
            Some("stderr") => &mut streams.stderr,
            Some("resize") => &mut streams.resize,
            _ => continue,
        };
        *slot = Some(stream);
        missing -= 1;
    }
    Some(streams)
}

async fn spdy<F>(version: RemoteVersion, io: Box<dyn Stream>, wanted: Wanted, session: F)
where
    F: Future<Output = Session>,
{
    let Ok(mut connection) = Connection::start(io) else { return };
    let expected = 1
        + usize::from(wanted.stdin)
        + usize::from(wanted.stdout)
        + usize::from(wanted.stderr)
        + usize::from(wanted.tty && version.has_resize());
    let collected = tokio::time::timeout(STREAM_CREATION, collect(&mut connection, expected)).await;
    // Further streams have no meaning; announcing them must not block the reader.
    connection.streams.close();
    let Ok(Some(Streams { error: Some(error), stdin, stdout, stderr, resize })) = collected else {
        tracing::debug!("SPDY client did not open its streams in time");
        connection.close().await;
        return;
    };
    let (queue, input) = mpsc::channel(QUEUE);
    if let Some(stdin) = stdin {
        tokio::spawn(feed_stdin(stdin, queue.clone(), connection.closed.clone()));
    }
    if let Some(resize) = resize {
        tokio::spawn(feed_sizes(resize, queue.clone()));
    }
    drop(queue);
    let output = Output::Spdy { stdout: stdout.map(|s| s.out), stderr: stderr.map(|s| s.out), error: error.out };
    let closed = connection.closed.clone();
    // The connection pings by itself.
    join(session, input, output, version.error_format(), Stall::default(), closed.cancelled_owned()).await;
    connection.close().await;
}

async fn feed_stdin(
    mut stdin: Incoming,
    queue: mpsc::Sender<(u8, Bytes)>,
    closed: tokio_util::sync::CancellationToken,
) {
    while let Some(payload) = stdin.input.recv().await {
        if queue.send((channel::STDIN, payload)).await.is_err() {
            return;
        }
    }
    // A half-close of the client is the end of its input; the end of the connection is not.
    if !closed.is_cancelled() {
        let _ = queue.send((channel::CLOSE, Bytes::from_static(&[channel::STDIN]))).await;
    }
}

/// Sizes are JSON values one after the other; frames need not keep their borders.
async fn feed_sizes(mut resize: Incoming, queue: mpsc::Sender<(u8, Bytes)>) {
    let mut pending: Vec<u8> = Vec::new();
    while let Some(payload) = resize.input.recv().await {
        pending.extend_from_slice(&payload);
        let mut values = serde_json::Deserializer::from_slice(&pending).into_iter::<TerminalSize>();
        let mut last = None;
        let mut used = 0;
        let mut broken = false;
        loop {
            match values.next() {
                Some(Ok(size)) => {
                    last = Some(size);
                    used = values.byte_offset();
                }
                Some(Err(e)) => {
                    broken = !e.is_eof();
                    break;
                }
                None => break,
            }
        }
        // Only the newest size matters.
        if let Some(json) = last.and_then(|size| serde_json::to_vec(&size).ok())
            && queue.send((channel::RESIZE, json.into())).await.is_err()
        {
            return;
        }
        if broken || pending.len() - used > 4096 {
            return;
        }
        pending.drain(..used);
    }
}
