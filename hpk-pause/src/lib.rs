//! hpk-pause as a library: the parts that its `main` puts together, open to tests and benches.
//!
//! ```text
//!   main ─▶ supervise ─▶ driver ─▶ hpk_core        decides
//!                          │
//!                          ├─▶ perform ─▶ hpk_sys  processes        hpk_log  output
//!                          ├─▶ status              status.json
//!                          └─◀ control             the socket
//! ```

pub mod control;
pub mod crossing;
pub mod driver;
pub mod env_files;
pub mod gpus;
pub mod handlers;
pub mod helper;
pub mod memory;
pub mod network;
pub mod options;
pub mod paths;
pub mod perform;
pub mod probe;
pub mod process;
pub mod ranks;
pub mod sandbox;
pub mod spec;
pub mod status;
pub mod stops;
pub mod storage;
pub mod supervise;
pub mod term;
