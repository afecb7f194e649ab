//! What the pods' datapaths must know of the cluster.
//!
//! ```text
//!  API server ─ watches ─▶ ┐                       ┌─▶ peers: address ─▶ datapath and key (when asked, and when it changes)
//!  links ─ Up, Asked ────▶ ┴ World (pure) ─▶ pushes┼─▶ services: ClusterIP and port ─▶ endpoints (to all)
//!                                                  ├─▶ policies: compiled for each pod (to it alone)
//!                                                  └─▶ relays, listeners (to the control plane's member)
//! ```
//! [`world::World`] decides and is pure; [`run`] watches and pushes. It allocates nothing to pods: addresses come with
//! the links that use them.

pub mod balancer;
mod dirty;
mod holds;
pub mod policies;
pub mod relays;
pub mod services;
pub mod stand_ins;
mod unenforced;
mod watch;
pub mod world;

pub use balancer::Notice;
pub use watch::{Config, run};
