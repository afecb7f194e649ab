//! The kubelet's HTTPS API: what `kubectl logs`, `exec`, `attach`, `port-forward`, `cp`, `top` and the API
//! server's proxy reach.
//!
//! Owns authentication, authorization, routes, texts and streaming protocols as upstream's kubelet has them;
//! knows pods only through [`Backend`] and what runs in them only through the supervisor's control socket.
//! It never changes a pod and keeps no state but caches.
//!
//! ```text
//!  client ─TLS, http/1.1─▶ [listener] ─▶ auth ─▶ route ─┬─▶ logs, stats, pods … ─▶ response
//!                                                       └─▶ stream (101) ─▶ supervisor's session
//! ```

mod auth;
mod backend;
pub mod egress;
mod head;
mod listener;
mod logs;
mod metrics_api;
mod node_logs;
mod probes;
pub mod prometheus;
mod respond;
mod route;
mod selector;
mod service;
mod stats;
mod stream;
mod tls;

pub use backend::{Backend, ConnectError, LoopEnded, NodeStats, Stream, SupervisorStream};
pub use listener::{ServerConfig, start};
pub use tls::{TlsError, TlsFiles};
