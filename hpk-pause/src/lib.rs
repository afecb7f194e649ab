//! hpk-pause as a library: the parts that its `main` puts together. What is public is what `main`, the tests and the benches
//! need.
//!
//! ```text
//!   main ─▶ supervise ─▶ driver ─▶ hpk_core        decides
//!                          │
//!                          ├─▶ perform ─▶ hpk_sys  processes        hpk_log  output
//!                          ├─▶ status              status.json
//!                          └─◀ control             the socket
//! ```

pub mod control;
mod crossing;
mod driver;
mod env_files;
mod gpus;
mod handlers;
mod helper;
mod keep;
mod memory;
mod network;
pub mod options;
mod paths;
mod perform;
mod probe;
mod process;
mod ranks;
mod sandbox;
mod spec;
mod status;
mod stops;
mod storage;
mod supervise;
mod term;

pub use handlers::network_probe;
pub use probe::ProbeContext;
pub use ranks::make as make_ranks;
pub use supervise::run;
