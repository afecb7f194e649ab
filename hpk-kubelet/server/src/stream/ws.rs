//! WebSocket connections of the channel family: a first byte (or digit, in base64) that names the channel.

use super::upgrade::Channels;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

type Io = Box<dyn crate::backend::Stream>;

/// Largest message that a client may send, bytes; kubectl sends 32 KiB.
const MAX_MESSAGE: usize = 4 << 20;
/// Data that we put into one message, bytes.
pub(super) const CHUNK: usize = 32 << 10;

/// A connection whose handshake is done.
pub(super) async fn accept(io: Io) -> WebSocketStream<Io> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Receives channel messages.
pub(super) struct Receiver {
    stream: SplitStream<WebSocketStream<Io>>,
    channels: Channels,
}

/// Sends channel messages.
pub(super) struct Sender {
    sink: SplitSink<WebSocketStream<Io>, Message>,
    channels: Channels,
}

/// Splits a connection.
pub(super) fn split(socket: WebSocketStream<Io>, channels: Channels) -> (Sender, Receiver) {
    let (sink, stream) = socket.split();
    (Sender { sink, channels }, Receiver { stream, channels })
}

impl Receiver {
    /// The next message; None when the client closed, vanished or broke the protocol.
    pub(super) async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let decoded = match self.stream.next().await? {
                Ok(Message::Binary(bytes)) => decode(bytes, self.channels),
                Ok(Message::Text(text)) => decode(text.into(), self.channels),
                Ok(Message::Close(_)) | Err(_) => return None,
                // Pings are answered by the library.
                Ok(_) => continue,
            };
            // An empty message has no channel and no meaning.
            if let Some(message) = decoded {
                return Some(message);
            }
        }
    }
}

fn decode(mut message: Bytes, channels: Channels) -> Option<(u8, Bytes)> {
    let channel = *message.first()?;
    let payload = message.split_off(1);
    if channels.base64 {
        let digit = channel.checked_sub(b'0')?;
        return Some((digit, STANDARD.decode(&payload).ok()?.into()));
    }
    Some((channel, payload))
}

impl Sender {
    /// One message; waits while the client does not read.
    pub(super) async fn send(&mut self, channel: u8, payload: &[u8]) -> Result<(), Error> {
        if payload.is_empty() {
            return self.sink.send(encode(channel, payload, self.channels)).await;
        }
        for part in payload.chunks(CHUNK) {
            self.sink.send(encode(channel, part, self.channels)).await?;
        }
        Ok(())
    }

    /// Fails once the client is gone.
    pub(super) async fn ping(&mut self) -> Result<(), Error> {
        self.sink.send(Message::Ping(Bytes::new())).await
    }

    /// The orderly end.
    pub(super) async fn close(&mut self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // The client may be gone already.
        let _ = self.sink.send(Message::Close(Some(frame))).await;
    }
}

fn encode(channel: u8, payload: &[u8], channels: Channels) -> Message {
    if channels.base64 {
        let mut text = char::from(b'0' + (channel & 7)).to_string();
        STANDARD.encode_string(payload, &mut text);
        return Message::text(text);
    }
    let mut bytes = Vec::with_capacity(payload.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(payload);
    Message::binary(bytes)
}

/// The raw bytes inside the messages of a tunnel, as a byte stream. Ends when either side does.
pub(super) fn tunnel(socket: WebSocketStream<Io>) -> DuplexStream {
    let (ours, inner) = tokio::io::duplex(256 << 10);
    let (mut from_inner, mut to_inner) = tokio::io::split(inner);
    let (mut sink, mut stream) = socket.split();
    let inward = async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => break,
                _ => continue,
            };
            if to_inner.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // What came is still to be read; what goes out may still be on its way.
        let _ = to_inner.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outward = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from_inner.read(&mut buffer).await {
            if sink.send(Message::binary(buffer[..n].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    // A client that cannot be written to is gone, whatever of its own still waits to be read inside.
    tokio::spawn(async move {
        tokio::select! {
            () = inward => {}
            () = outward => {}
        }
    });
    ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_round_trip(channel in 0u8..5, payload in prop::collection::vec(any::<u8>(), 0..100), base64: bool) {
            let channels = Channels { version: 4, base64 };
            let message = encode(channel, &payload, channels);
            prop_assert_eq!(message.is_text(), base64);
            let (got, bytes) = decode(message.into_data(), channels).unwrap();
            prop_assert_eq!((got, bytes.to_vec()), (channel, payload));
        }
    }

    #[test]
    fn empty_and_malformed_messages_mean_nothing() {
        let base64 = Channels { version: 4, base64: true };
        assert_eq!(decode(Bytes::new(), base64), None);
        assert_eq!(decode(Bytes::from_static(b"0!!"), base64), None);
        assert_eq!(decode(Bytes::from_static(b"\x00aGk="), base64), None);
    }
}
