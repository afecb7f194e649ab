//! The native launcher with real processes.
#![allow(missing_docs)]

mod common;

use common::{World, finish, wait};
use hpk_sys::join::{JoinSpec, Joiner};
use hpk_sys::launch::{FailureKind, LaunchError, Launcher, Mount, Native, Security, Step, Upper};
use hpk_sys::reap::ExitCause;
use std::os::fd::AsFd;

fn run(spec: &hpk_sys::launch::LaunchSpec) -> (String, String, ExitCause) {
    finish(Native::new().expect("a node").launch(spec).expect("a container"))
}

#[test]
fn a_container_has_its_own_root_and_process_namespace() {
    let world = World::new();
    let (out, err, cause) = run(&world.sh("echo $$; ls /; ls /dev; cat /proc/1/comm; echo e >&2; exit 7"));
    assert_eq!(cause, ExitCause::Exited(7), "{err}");
    assert_eq!(err, "e\n");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.first(), Some(&"1"));
    for wanted in ["bin", "dev", "proc", "sys", "null", "zero", "ptmx", "shm", "mqueue", "pts", "stdout", "sh"] {
        assert!(lines.contains(&wanted), "{wanted} in {out}");
    }
    assert!(!out.contains("var\n"));
}
