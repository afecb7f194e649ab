//! The supervisor's system calls, and the only crate of the project with `unsafe` code.
//!
//! It owns how a container's process comes to be ([`launch`]), how another process joins a running container
//! ([`join`]), how children are waited for ([`reap`]) and signalled ([`signals`]), terminals ([`pty`]), the pod's
//! network devices ([`netdev`]), sockets that cross to the pods' network ([`crossing`]), ports that stay held ([`ports`]), a folder of one's own in `/tmp` ([`folders`]), user
//! namespaces for unpacking and deleting files of subordinate ids ([`userns`]), and what the kernel tells about processes
//! ([`procfs`]) and the job's memory ([`cgroup`]).
//! It never decides: no restart policy, no time-out, no retry lives here.
//!
//! # Between clone and exec
//! A child made here shares nothing with its parent's memory but runs in a copy of a program with several threads, so
//! until its exec it may only use what is async-signal-safe. The parent therefore compiles everything to a
//! [`program`] first: a list of operations with all strings made. The child runs the list and reports
//! the first one that fails, by its index, over a socket that exec closes.

#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod below;
pub mod beneath;
pub mod caps;
pub mod cgroup;
mod child;
pub mod crossing;
pub mod error;
pub mod fdpass;
pub mod folders;
pub mod ids;
pub mod join;
pub mod launch;
pub mod memory;
pub mod mounts;
pub mod netdev;
pub mod peer;
mod pidns;
pub mod ports;
pub mod process;
pub mod procfs;
pub mod program;
pub mod pty;
pub mod rank;
pub mod reap;
pub mod seccomp;
pub mod signals;
pub mod spawn;
pub mod userns;
pub mod users;

pub use nix::errno::Errno;
