//! The client's side of a supervisor's control socket ([`hpk_api::control`]): hello, request, answer, then lines or frames.
//!
//! ```text
//! blocking: a Unix socket ──┐
//!                           ├──▶ codec (pure): bytes in, answers, lines and frames out
//! stream: any async stream ─┘
//! ```
//! It interprets nothing of what is asked and answered. The supervisor's side is hpk-pause's.

pub mod blocking;
mod codec;
#[cfg(feature = "stream")]
pub mod stream;

use hpk_api::control::{ControlError, ErrorCode, StreamEnd};
use std::io;
use std::path::PathBuf;

/// A request that was not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The supervisor refused it.
    #[error("{}", .0.message)]
    Refused(ControlError),
    /// There is nobody at the socket.
    #[error("cannot connect to {}: {source}; does the pod run on this node?", path.display())]
    Connect {
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("connection to the pod's supervisor broke: {0}")]
    Io(#[from] io::Error),
    /// The supervisor does not speak the contract.
    #[error("the answer of the pod's supervisor cannot be read: {0}")]
    Protocol(String),
    /// The supervisor is silent.
    #[error(
        "the pod's supervisor does not answer (waited {0} s): it is stopped (SIGSTOP, a debugger), or its node is stuck; see \
         the node, or delete the pod, which ends it all the same"
    )]
    Timeout(u64),
}

impl RequestError {
    /// The class of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(error) => Some(error.code),
            _ => None,
        }
    }
}

/// Reads the payload of the channel that ends a stream.
#[must_use]
pub fn stream_end(payload: &[u8]) -> StreamEnd {
    serde_json::from_slice(payload).unwrap_or_else(|error| StreamEnd::Failed {
        message: format!("the pod's supervisor ended the stream with nonsense: {error}"),
    })
}
