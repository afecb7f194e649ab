//! The supervisor's decisions: a pure state machine of one pod.
//!
//! [`Supervisor::step`] takes the time and one [`Event`] and says what to do as [`Action`]s. It owns restart
//! policies and back-off, the order of init containers and sidecars, probes, hooks, the end of a pod and the
//! state that people see. It never does I/O, never reads a clock, never blocks and is total: any event at any
//! time is taken, an event that makes no sense changes nothing. The rules are upstream's kubelet's of
//! Kubernetes 1.37 (pkg/kubelet/{kuberuntime,prober,lifecycle}); each module names its source.
//!
//! One container:
//! ```text
//!                 its turn, not blocked            Launched                    postStart done
//!   Idle ───────────────────────────▶ Launching ─────────────▶ Live(postStart) ──────────────▶ Live
//!    ▲ ▲                                  │                          │                          │
//!    │ └── time is up ── Delayed ◀────────┤ CreateContainerError     │ hook fails: kill         │ probe fails,
//!    │                      ▲             │ (again after 10 s)       ▼                          │ image changed,
//!    │                      │ in back-off │                      Live(kill) ◀───────────────────┘ pod ends:
//!    │                      │             │ StartError               │ PreStop → Turn →           kill
//!    └── may restart ───────┴──── exit ◀──┴──────────────────────────┘ Term → Killed (kill.rs)
//!                                  │
//!                                  └── for good ──▶ Ended
//! ```
//! The pod:
//! ```text
//!   SandboxReady ─▶ init containers in order (a sidecar counts once it has started) ─▶ containers
//!      all containers Ended, or an init container failed for good, or Stop, or the deadline
//!        ─▶ ending: everything live is killed, sidecars last and in reverse order ─▶ finished
//!   a RestartAllContainers rule matched ─▶ everything live is killed, one by one ─▶ from the first init container
//! ```

mod backoff;
mod container;
mod due;
mod ending;
pub mod env_file;
mod health;
mod instance;
mod kill;
mod memory;
mod policy;
mod probe;
mod record;
mod requeue;
mod settle;
mod step;
mod storage;
mod supervisor;
mod text;
mod types;
mod update;

#[cfg(test)]
mod lives;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod world;

pub use memory::{MemoryFinding, MemoryRule, MemoryUse, ProcessUse};
pub use step::{Gang, GangChange};
pub use storage::{ContainerUse, EVICTION_GRACE_SECONDS, StorageLimits, StorageUse};
pub use supervisor::{Identity, Supervisor};
pub use types::{Action, ContainerIndex, Event, Exit, ExitCause, Hook, HookFailure, LaunchFailure, Now, ProbeOutcome};
