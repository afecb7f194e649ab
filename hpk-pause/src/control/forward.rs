//! port-forward and dial: TCP from inside the pod's network namespace, which is our own.

use super::Context;
use super::handshake::Handshake;
use super::wire::{FrameReader, FrameWriter, Gone, frame_buffer, frame_in_place};
use hpk_api::control::{Answer, ControlError, ErrorCode, Reply, StreamEnd};
use hpk_api::frame::{HEADER, channel};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(30);

/// Connects to a port of the pod's localhost, IPv4 first, as container engines do.
pub(super) async fn port(handshake: Handshake, port: u16, context: &Context) {
    let v4 = match connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(tcp) => return stream(handshake, tcp).await,
        Err(error) => error,
    };
    match connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).await {
        Ok(tcp) => stream(handshake, tcp).await,
        Err(v6) => {
            let pod = context.state.borrow().pod.clone();
            let message = format!(
                "failed to connect to localhost:{port} inside namespace of pod {}/{}, IPv4: {v4} IPv6 {v6}",
                pod.namespace, pod.name
            );
            handshake.refuse(ControlError { code: ErrorCode::NotFound, message }).await;
        }
    }
}

/// Connects to any address that the pod can reach.
pub(super) async fn dial(handshake: Handshake, address: SocketAddr) {
    match connect(address).await {
        Ok(tcp) => stream(handshake, tcp).await,
        Err(message) => handshake.refuse(ControlError { code: ErrorCode::NotFound, message }).await,
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let network = if address.is_ipv4() { "tcp4" } else { "tcp6" };
    match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(tcp)) => {
            // Failing to switch Nagle off costs time, not correctness.
            let _ = tcp.set_nodelay(true);
            Ok(tcp)
        }
        Ok(Err(error)) => Err(format!("dial {network} {address}: connect: {}", crate::probe::text::errno(&error))),
        Err(_) => Err(format!("dial {network} {address}: i/o timeout")),
    }
}

async fn stream(mut handshake: Handshake, mut tcp: TcpStream) {
    if !handshake.answer(&Reply::Ok(Answer::Streaming)).await {
        return;
    }
    let Ok(gone) = Gone::watch(&handshake.stream) else { return };
    let rest = std::mem::take(&mut handshake.rest);
    let (reader, writer) = handshake.stream.split();
    let (mut from, mut to) = tcp.split();
    let mut frames = FrameReader::new(reader, rest);
    let writer = FrameWriter::new(writer);
    let outward = async {
        loop {
            // None: the client is gone.
            let Some((channel, payload)) = frames.next().await else { return Ok(false) };
            match channel {
                channel::STDIN => to.write_all(payload).await?,
                channel::CLOSE if payload == [channel::STDIN] => {
                    to.shutdown().await?;
                    return io::Result::Ok(true);
                }
                _ => {}
            }
        }
    };
    let inward = async {
        let mut buffer = frame_buffer();
        loop {
            let length = from.read(&mut buffer[HEADER..]).await?;
            if length == 0 {
                writer.frame(channel::CLOSE, &[channel::STDOUT]).await?;
                return io::Result::Ok(());
            }
            writer.send(frame_in_place(channel::STDOUT, &mut buffer, length)).await?;
        }
    };
    let result = tokio::select! {
        result = async { tokio::try_join!(outward, inward) } => result,
        () = gone.wait() => return,
    };
    let end = match result {
        Ok((true, ())) => StreamEnd::Success,
        Ok((false, ())) => return,
        Err(error) => StreamEnd::Failed { message: error.to_string() },
    };
    writer.end(&end).await;
}
