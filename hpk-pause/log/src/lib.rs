//! Container output: from pipes and terminals into CRI log files, and from these back to clients.
//!
//! Owns the log files of a pod (`logs/<container>/<restart count>.log`, their rotation and compression) and
//! the one thread that writes them, so that the supervisor's event loop never touches the shared file system.
//! Never decides when a container is started or ended, and never signals a process.
//!
//! ```text
//!  container ──pipe/pty──▶ pump (one thread, epoll) ──▶ <n>.log ──rename──▶ <n>.log.YYYYMMDD-HHMMSS ──▶ ….gz
//!                            │  ├─ tap ──pipe──▶ attach client          (raw bytes, bounded)
//!                            │  └─ follower ──eventfd──▶ LogReader      (there is more to read)
//!                            └─ LogEvent ──▶ the supervisor             (drained, trouble, recovered)
//! ```
//!
//! **When the disk is full or the file system fails** the pump stops reading that container's output, so the
//! container is slowed by its full pipe; it tries again every [`LogSettings::retry_every`]. After
//! [`LogSettings::stall_limit`] it gives up holding the container back and discards, counts what is lost and
//! goes on trying; once writing works again a record in the log says how much is missing. A container is never
//! killed for its log. A file system that hangs inside `write` blocks the pump's thread alone.

mod contract;
mod cut;
mod file;
mod follower;
mod handle;
mod last;
mod pump;
mod reader;
mod records;
mod rotate;
mod stamp;
mod tap;

pub use contract::{Counters, LogEvent, LogId, LogSettings, LogTarget, Source};
pub use follower::Follower;
pub use handle::{LogHandle, LogService};
pub use reader::{LogReader, ReadError, ReadOptions, ReadStatus, tail_for_termination_message};
pub use stamp::Stamper;
pub use tap::{Tap, TapEnd};
