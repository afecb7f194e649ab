//! TCP settings of the link.

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;

/// Seconds of silence before the kernel probes the other end.
const IDLE: u32 = 30;
/// Seconds between probes.
const INTERVAL: u32 = 10;
/// Unanswered probes until the connection is dead.
const PROBES: u32 = 3;
/// Milliseconds that sent data may stay unacknowledged.
const USER_TIMEOUT: u32 = 30_000;

/// No delay, and half-open connections found within a minute without a wake-up of ours.
pub(crate) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &IDLE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &INTERVAL)?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &USER_TIMEOUT)?;
    Ok(())
}
