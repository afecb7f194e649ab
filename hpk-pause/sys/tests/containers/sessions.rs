//! Who joins a container, and what ends with it.

use crate::common;
use crate::common::{World, finish, output, wait};
use crate::{fails, nested, run, start};
use hpk_sys::join::Joiner;
use hpk_sys::launch::{JoinSpec, LaunchError, Launched, Launcher, Native, PidNamespace};
use hpk_sys::reap::ExitCause;
use hpk_sys::signals::{self, MountNs};
use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;

fn join_spec(argv: &[&str]) -> JoinSpec {
    let env = vec![("PATH".to_owned(), "/bin".to_owned())];
    JoinSpec { env, ..JoinSpec::new(argv.iter().copied()) }
}

/// Of the container, whoever its launcher is.
fn namespace(container: &Launched) -> MountNs {
    match container.inner {
        Some(inner) => inner.mount_ns,
        None => MountNs::of(container.pid).expect("a namespace"),
    }
}

fn sleeper(world: &World, pid: PidNamespace) -> Launched {
    let mut spec = world.sh("touch /here; sleep 1000 & echo up; wait");
    spec.pid = pid;
    let launched = start(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &launched.io else { panic!("pipes") };
    let mut line = [0u8; 3];
    nix::unistd::read(stdout, &mut line).expect("its word");
    launched
}

#[test]
fn a_session_joins_a_container() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Own);
    let joiner = Joiner::new().expect("a joiner");
    let spec = join_spec(&["sh", "-c", "ls /here; cat /proc/1/comm; echo $$ > /tmp/pid; exit 5"]);
    let (out, err, cause) =
        finish(joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait()).expect("a session"));
    assert_eq!((out.as_str(), cause), ("/here\nsh\n", ExitCause::Exited(5)), "{err}");
    // The next child is again of the supervisor's own namespace.
    let (out, _, _) = run(&world.sh("ls /here"));
    assert_eq!(out, "");
    let missing = joiner.start(container.pidfd.as_fd(), &join_spec(&["nothing"])).and_then(|s| s.wait());
    assert_eq!(missing.expect_err("no session").to_string(), "exec: \"nothing\": executable file not found in $PATH");

    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    assert_eq!(wait(container.pid), ExitCause::Signaled { signal: 9, core: false });
    let gone = joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait());
    assert_eq!(gone.expect_err("no session"), LaunchError::NotRunning);
}

/// In a user namespace of its own the caller has another number there, and so have sessions that join it.
#[test]
fn a_container_of_the_users_own_number() {
    if nested() {
        return;
    }
    let world = World::new();
    let own = Some((1234, 1234));
    let mut spec = world.sh("id -u; touch /mine; stat -c %u /mine /etc/passwd; sleep 1000 & echo up; wait");
    spec.identity = own;
    (spec.security.uid, spec.security.gid) = (1234, 1234);
    let container = start(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &container.io else { panic!("pipes") };
    let mut text = String::new();
    while !text.contains("up") {
        let mut some = [0u8; 64];
        let n = nix::unistd::read(stdout, &mut some).expect("its word");
        assert!(n > 0, "{text}");
        text.push_str(std::str::from_utf8(&some[..n]).expect("text"));
    }
    assert_eq!(text, "1234\n1234\n1234\nup\n");
    let joiner = Joiner::new().expect("a joiner");
    let mut session = JoinSpec { identity: own, ..join_spec(&["sh", "-c", "id -u; id -g; stat -c %u /mine"]) };
    (session.security.uid, session.security.gid) = (1234, 1234);
    let (out, err, _) =
        finish(joiner.start(container.pidfd.as_fd(), &session).and_then(|s| s.wait()).expect("a session"));
    assert_eq!(out, "1234\n1234\n1234\n", "{err}");
    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(container.pid);
}

/// Containers of one launcher share the namespace in which the caller has that number: one debugs the other, in its processes
/// or in those that all share.
#[test]
fn containers_keep_the_users_number_together() {
    if nested() {
        return;
    }
    let world = World::new();
    let own = Some((1234, 1234));
    let mut native = Native::new().expect("a node").keeping((1234, 1234));
    let mut spec = world.sh("touch /mine; echo $(id -u):$(id -g) $(stat -c %u /mine /etc/passwd); exec sleep 1000");
    (spec.identity, spec.security.uid, spec.security.gid) = (own, 1234, 1234);
    let target = native.launch(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &target.io else { panic!("pipes") };
    let mut text = Vec::new();
    while !text.contains(&b'\n') {
        let mut some = [0u8; 64];
        let n = nix::unistd::read(stdout, &mut some).expect("its word");
        assert!(n > 0, "{text:?}");
        text.extend_from_slice(&some[..n]);
    }
    assert_eq!(String::from_utf8_lossy(&text), "1234:1234 1234 1234\n");
    let mut debugger = world.sh("echo $(id -u) $(stat -c %u /proc/1); cat /proc/1/comm; ls /proc/1/root/mine");
    (debugger.identity, debugger.security.uid, debugger.security.gid) = (own, 1234, 1234);
    debugger.pid = PidNamespace::Of(Arc::new(target.pidfd.try_clone().expect("a descriptor")));
    let (out, err, _) = finish(native.launch(&debugger).expect("a container"));
    assert_eq!(out, "1234 1234\nsleep\n/proc/1/root/mine\n", "{err}");
    let mut shared = world.sh(&format!("cat /proc/{}/comm; id -u", target.pid));
    (shared.identity, shared.security.uid, shared.security.gid) = (own, 1234, 1234);
    shared.pid = PidNamespace::Pod;
    let (out, err, _) = finish(native.launch(&shared).expect("a container"));
    assert_eq!(out, "sleep\n1234\n", "{err}");
    signals::send(target.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(target.pid);
}

#[test]
fn a_container_joins_the_processes_of_its_target() {
    let world = World::new();
    let target = sleeper(&world, PidNamespace::Own);
    let pidfd = Arc::new(target.pidfd.try_clone().expect("a descriptor"));
    // Which of them ends first would be a race, if this one ended the target: it asks whether it could.
    let sleep = "$(grep -l sleep /proc/[0-9]*/comm | head -1 | cut -d/ -f3)";
    let mut spec = world.sh(&format!("cat /proc/1/comm; ls /here; kill -0 {sleep}"));
    spec.pid = PidNamespace::Of(Arc::clone(&pidfd));
    let (out, err, cause) = run(&spec);
    // Its own root, the target's processes.
    assert_eq!((out.as_str(), cause), ("sh\n", ExitCause::Exited(0)), "{err}");
    let mut killer = world.sh(&format!("kill -TERM {sleep}"));
    killer.pid = PidNamespace::Of(Arc::clone(&pidfd));
    run(&killer);
    // Its shell waits for that one alone.
    let (_, _, cause) = finish(target);
    assert_eq!(cause, ExitCause::Exited(0));
    assert_eq!(fails(&spec), LaunchError::NotRunning);
    // The next one is again of the supervisor's own namespace.
    assert_eq!(run(&world.sh("echo $$")).0, "1\n");
}

#[test]
fn a_session_with_a_terminal_has_its_size() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Own);
    let joiner = Joiner::new().expect("a joiner");
    let spec = JoinSpec { tty: true, size: (33, 111), ..join_spec(&["sh", "-c", "tty; stty size; id -u"]) };
    let (out, _, cause) =
        finish(joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait()).expect("a session"));
    assert_eq!((out.as_str(), cause), ("/dev/pts/0\r\n33 111\r\n0\r\n", ExitCause::Exited(0)));
    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(container.pid);
}

#[test]
fn a_session_group_is_killed_as_one() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Own);
    let joiner = Joiner::new().expect("a joiner");
    let spec = join_spec(&["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"]);
    let session = joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait()).expect("a session");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &session.io else { panic!("pipes") };
    nix::unistd::read(stdout, &mut [0u8; 3]).expect("its word");
    signals::kill_group(session.pid, nix::sys::signal::Signal::SIGKILL).expect("a group");
    // All holders of the pipes are gone, or this would not end.
    let (_, _, cause) = finish(session);
    assert_eq!(cause, ExitCause::Signaled { signal: 9, core: false });
    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(container.pid);
}

#[test]
fn everything_in_a_container_that_shares_the_namespace_is_found_and_killed() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Pod);
    let ns = namespace(&container);
    assert_eq!(signals::members(ns).len(), 2);
    let usage = hpk_sys::procfs::usage(ns);
    assert_eq!(usage.processes, 2);
    assert!(usage.rss_bytes > 0);
    assert!(signals::kill_all(ns) >= 2);
    let (_, _, cause) = finish(container);
    assert_eq!(cause, ExitCause::Signaled { signal: 9, core: false });
    let own = MountNs::of(nix::unistd::Pid::this()).expect("a namespace");
    assert_eq!(signals::members(own), [], "never our own");
}

#[test]
fn the_end_of_the_main_process_ends_a_container() {
    let world = World::new();
    let container = start(&world.sh("setsid sleep 1000 & exit 3")).expect("a container");
    // The orphan holds the pipes until the kernel kills it with its PID 1.
    let (_, _, cause) = finish(container);
    assert_eq!(cause, ExitCause::Exited(3));
}

#[test]
fn what_a_killed_apptainer_leaves_is_swept() {
    if std::env::var_os("HPK_SYS_APPTAINER").is_none() {
        return;
    }
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Pod);
    let (apptainer, inside) = (MountNs::of(container.pid).expect("a namespace"), namespace(&container));
    assert_eq!(signals::members(inside).len(), 2, "the shell and its sleep");
    nix::sys::signal::kill(container.pid, nix::sys::signal::Signal::SIGKILL).expect("a signal");
    assert_eq!(wait(container.pid), ExitCause::Signaled { signal: 9, core: false });
    hpk_sys::launch::nested::sweep(container.pidfd.as_fd(), apptainer, Some(inside));
    let left = || {
        let comm = |pid: &nix::unistd::Pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let namespaces = [signals::members(apptainer), signals::members(inside)].concat();
        let fuse = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("comm")).ok()?;
            text.starts_with("fuse-over").then_some(text)
        });
        namespaces.iter().map(comm).chain(fuse).collect::<Vec<_>>()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !left().is_empty() && std::time::Instant::now() < deadline {
        common::reap_all();
        std::thread::yield_now();
    }
    assert_eq!(left(), Vec::<String>::new());
    // Its pipes have no holder left, or this would not end.
    output(container.io);
}
