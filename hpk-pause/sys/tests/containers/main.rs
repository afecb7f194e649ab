//! Launchers and join with real processes.
//!
//! The native launcher, or, where `$HPK_SYS_APPTAINER` names an Apptainer and `$HPK_SYS_SHIM` an hpk-pause, the nested one:
//! the same tests for both. The latter needs a pod's parent container around it, so a case on the site runs it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod again;
#[path = "../common/mod.rs"]
mod common;
mod mounts;
mod rights;
mod sessions;
mod start;

use common::finish;
use hpk_sys::launch::{LaunchError, LaunchSpec, Launched, Launcher, Native, NestedApptainer, Places};
use hpk_sys::reap::ExitCause;

fn launcher(places: Places) -> Box<dyn Launcher> {
    match (std::env::var_os("HPK_SYS_APPTAINER"), std::env::var_os("HPK_SYS_SHIM")) {
        (Some(apptainer), Some(shim)) => Box::new(NestedApptainer::with(apptainer, shim, places).expect("a node")),
        _ => Box::new(Native::with(places).expect("a node").below()),
    }
}

/// Nested Apptainer makes no user namespaces of containers.
fn nested() -> bool {
    std::env::var_os("HPK_SYS_APPTAINER").is_some()
}

fn start(spec: &LaunchSpec) -> Result<Launched, LaunchError> {
    launcher(Places::default()).launch(spec)
}

fn run(spec: &LaunchSpec) -> (String, String, ExitCause) {
    finish(start(spec).expect("a container"))
}

fn fails(spec: &LaunchSpec) -> LaunchError {
    start(spec).expect_err("no container")
}
