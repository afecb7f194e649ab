//! How processes in a node's own network get sockets of the pods' network: the wire between who answers for a process's
//! `connect` and who makes sockets there.
//!
//! The socket is `crossing.sock` (`hpk_layout::node::CROSSING_SOCK`). A connection carries any number of requests, one JSON line
//! [`SocketAsk`] each. The answer to each is one JSON line [`SocketAnswer`]; with `Ok` comes the descriptor (SCM_RIGHTS).
//! Who connects must have the server's user id.

use serde::{Deserialize, Serialize};

/// A socket that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketAsk {
    /// Of family AF_INET6; else AF_INET.
    pub ipv6: bool,
    /// UDP; else TCP.
    pub datagram: bool,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketAnswer {
    /// The descriptor comes with this line. The socket is neither bound nor connected, does not block and closes at exec.
    Ok(()),
    /// Why there is none.
    Failed(String),
}

/// Longest request or answer, bytes.
pub const MAX_LINE: usize = 4096;
