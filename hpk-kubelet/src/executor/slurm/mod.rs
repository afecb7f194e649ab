//! Slurm as an executor.
//!
//! Pure: [`request`] (what a pod asks of Slurm), [`flags`] (users' own flags), [`limits`] (what the site gives and allows),
//! [`gres`] (which device is which resource), [`job`] (what Slurm says of a job). [`client`] runs Slurm's commands and nothing else.

pub mod capacity;
pub mod client;
pub mod cluster;
pub mod flags;
pub mod gres;
pub mod job;
pub mod limits;
pub mod request;
mod seam;
