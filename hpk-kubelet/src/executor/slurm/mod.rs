//! Slurm as an executor.
//!
//! Pure: [`request`] (what a pod asks of Slurm), [`flags`] (users' own flags), [`limits`] (what the site gives and allows),
//! [`gres`] (which device is which resource), [`job`] (what Slurm says of a job),
//! [`waiting`] (why it waits). [`client`] runs Slurm's commands and nothing else.

pub(crate) mod capacity;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod error;
pub(crate) mod flags;
pub(crate) mod gres;
pub(crate) mod job;
pub(crate) mod limits;
pub(crate) mod request;
mod resize;
mod seam;
pub(crate) mod waiting;
