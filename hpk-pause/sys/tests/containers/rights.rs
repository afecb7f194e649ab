//! What a container may do.

use crate::common;
use crate::common::{World, finish, wait};
use crate::run;
use hpk_sys::caps::CapSet;
use hpk_sys::launch::{Launcher, Native, PidNamespace, Rlimit, Security};
use hpk_sys::reap::ExitCause;
use hpk_sys::signals;
use std::os::fd::AsFd;
use std::sync::Arc;

#[test]
fn rights_are_what_the_spec_says() {
    let world = World::new();
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Umask)' /proc/self/status";
    let field = |out: &str, name: &str| {
        out.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
            .unwrap_or_else(|| panic!("{name} in {out}"))
    };
    let (out, err, _) = run(&world.sh(script));
    assert_eq!(field(&out, "CapEff:"), "00000000a80425fb", "{err}");
    assert_eq!(field(&out, "CapBnd:"), "00000000a80425fb");
    assert_eq!(field(&out, "CapInh:"), "0000000000000000");
    assert_eq!(field(&out, "CapAmb:"), "0000000000000000");
    assert_eq!(field(&out, "Umask:"), "0022");
    // The filter of an old kernel's test is inherited.
    assert_eq!(field(&out, "Seccomp:"), if common::old_kernel::is() { "2" } else { "0" });
    let mut spec = world.sh(script);
    spec.security = Security {
        uid: 1000,
        gid: 2000,
        groups: vec![3000, 4000],
        no_new_privs: true,
        seccomp: Some(Arc::new(hpk_sys::seccomp::runtime_default().expect("a filter"))),
        caps: CapSet::resolve(&["NET_ADMIN".to_owned()], &["ALL".to_owned()]).expect("a set"),
        ..Security::default()
    };
    let (out, err, _) = run(&spec);
    assert_eq!(field(&out, "CapEff:"), "0000000000000000", "{err}");
    assert_eq!(field(&out, "CapBnd:"), "0000000000001000");
    assert_eq!(field(&out, "NoNewPrivs:"), "1");
    assert_eq!(field(&out, "Seccomp:"), "2");
    assert_eq!(field(&out, "Groups:"), "3000 4000");
    assert_eq!(field(&out, "Uid:"), "1000\t1000\t1000\t1000");
}

#[test]
fn runtime_default_refuses_what_engines_refuse() {
    let world = World::new();
    let mut spec = world.sh("mount -t tmpfs none /tmp; echo $?; hostname evil; echo $?; sh -c 'exit 3'; echo $?");
    spec.security.caps = CapSet::all();
    spec.security.seccomp = Some(Arc::new(hpk_sys::seccomp::runtime_default().expect("a filter")));
    let (out, err, cause) = run(&spec);
    assert_eq!(cause, ExitCause::Exited(0));
    // hostname of busybox always ends with 0 or 1 by its own view; the mount and the message are what counts.
    assert!(out.starts_with('1') || out.starts_with("255"), "{out}");
    assert!(err.contains("Operation not permitted") || err.contains("permission denied"), "{err}");
    assert!(out.ends_with("3\n"), "{out}");
}

#[test]
fn limits_are_set() {
    let world = World::new();
    let mut spec = world.sh("ulimit -n; cat /proc/self/oom_score_adj");
    spec.rlimits = vec![Rlimit { resource: libc::RLIMIT_NOFILE, soft: 123, hard: 456 }];
    spec.oom_score_adj = Some(999);
    assert_eq!(run(&spec).0, "123\n999\n");
}

/// With every right that a container can have, where processes are shared.
#[test]
fn the_supervisor_is_out_of_reach_and_containers_are_not() {
    let world = World::new();
    let supervisor = std::process::id();
    let mut first = Native::new().expect("a node").below();
    let mut spec = world.sh("touch /here; echo up; exec sleep 1000");
    spec.pid = PidNamespace::Pod;
    let target = first.launch(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &target.io else { panic!("pipes") };
    nix::unistd::read(stdout, &mut [0u8; 3]).expect("its word");
    let other = target.pid;
    let mut spec = world.sh(&format!(
        "ls /proc/{other}/root/here; cat /proc/{supervisor}/comm | wc -l; ls /proc/{supervisor}/root/; cat /proc/{supervisor}/environ; \
         mount -t tmpfs none /tmp && echo mounted"
    ));
    spec.pid = PidNamespace::Pod;
    spec.security.caps = CapSet::all();
    spec.security.unmasked = true;
    let (out, err, _) = finish(first.launch(&spec).expect("a container"));
    assert_eq!(out, format!("/proc/{other}/root/here\n1\nmounted\n"), "{err}");
    assert_eq!(err.matches("Permission denied").count(), 2, "{err}");
    signals::send(target.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(target.pid);
}
