//! What a Slurm command that failed means: whether another try helps, and whether a job may have come of it.

use super::job;
use std::time::Duration;
use thiserror::Error;

/// A Slurm command that did not do its work.
#[derive(Debug, Error)]
pub enum SlurmError {
    /// Not installed.
    #[error("{command} is not found in PATH: load the site's Slurm module or install Slurm's client commands")]
    NotFound { command: &'static str },
    /// Could not be run.
    #[error("cannot run {command}")]
    Run {
        command: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// Took too long.
    #[error("{command} gave no answer within {} s", limit.as_secs())]
    Timeout { command: &'static str, limit: Duration },
    /// Said no.
    #[error("{command}: {message}")]
    Refused {
        command: &'static str,
        /// Its own words.
        message: String,
    },
    /// Answered something unreadable.
    #[error(transparent)]
    Answer(#[from] job::ParseError),
}

impl SlurmError {
    /// Another try can help: the controller was away or busy.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Run { .. } => true,
            Self::Refused { message, .. } => {
                let m = message.to_lowercase();
                [
                    "unable to contact slurm controller",
                    "socket timed out",
                    "connection refused",
                    "zero bytes were transmitted",
                    "slurm temporarily unable",
                    "resource temporarily unavailable",
                    "communication connection failure",
                    "backup controller",
                    "job violates accounting/qos policy",
                    "please try again",
                    "munge",
                ]
                .iter()
                .any(|t| m.contains(t))
            }
            Self::NotFound { .. } | Self::Answer(_) => false,
        }
    }

    /// Of sbatch: slurmctld has answered, or was not reached, so that no job comes of it. Of all else, a time-out, a broken
    /// connection, words that are not known, it may have made a job, or make one when it has time.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Run { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Timeout { .. } | Self::Answer(_) => false,
            Self::Refused { message, .. } => {
                let said = message.to_lowercase();
                let Some((_, reason)) = said.split_once("batch job submission failed: ") else { return false };
                // What is said of the connection itself, by Slurm and by the C library; too many words do no harm.
                let talk = [
                    "timed out",
                    "contact",
                    "connect",
                    "transmit",
                    "message",
                    "protocol",
                    "communicat",
                    "receive",
                    "send",
                    "socket",
                    "pipe",
                    "network",
                    "host",
                    "temporar",
                    "authentic",
                    "munge",
                    "interrupt",
                    "try again",
                ];
                reason.contains("(connect failure)") || !talk.iter().any(|word| reason.contains(word))
            }
        }
    }
}
