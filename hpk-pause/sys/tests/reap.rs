//! Reaping as a supervisor meets it: orphans among children of its own.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::World;
use hpk_sys::launch::{Launcher, Native};
use hpk_sys::reap::{ExitCause, Poll, Reaper, become_subreaper};
use std::collections::HashMap;

/// Ends that come until nothing runs any more.
fn drain() -> HashMap<i32, ExitCause> {
    let mut reaper = Reaper::new();
    let mut ended = HashMap::new();
    loop {
        match reaper.poll() {
            Poll::Reaped(reaped) => {
                let twice = ended.insert(reaped.pid.as_raw(), reaped.cause);
                assert_eq!(twice, None, "an id ends once");
            }
            // Children run: there is nothing else to do here than to wait.
            Poll::NoneEnded => std::thread::sleep(std::time::Duration::from_millis(1)),
            Poll::NoChildren => return ended,
        }
    }
}

#[test]
fn orphans_and_children_all_come_with_their_causes() {
    let world = World::new();
    become_subreaper().expect("a subreaper");
    let mut native = Native::new().expect("a node");
    // In the pod's own PID namespace each background process becomes an orphan of ours when its shell ends.
    // The orphans wait for the end of the shell's input, which comes after the shell's own end.
    let script = "exec 3<&0; i=0; while [ $i -lt 300 ]; do (exit 5) & (cat <&3; exit 6) & i=$((i+1)); done; exit 7";
    let mut spec = world.sh(script);
    spec.pid = hpk_sys::launch::PidNamespace::Pod;
    spec.stdin = true;
    let launched = native.launch(&spec).expect("a container");
    let killed = native.launch(&world.spec(&["sh", "-c", "kill -SEGV $$; sleep 1000"])).expect("a container");
    // PID 1 of its own namespace ignores what it does not handle, also from itself.
    hpk_sys::signals::send(std::os::fd::AsFd::as_fd(&killed.pidfd), libc::SIGKILL).expect("a signal");
    let minute = std::time::Duration::from_secs(60);
    assert!(hpk_sys::process::wait_end(std::os::fd::AsFd::as_fd(&launched.pidfd), Some(minute)), "the shell ends");
    let (main, victim) = (launched.pid.as_raw(), killed.pid.as_raw());
    drop((launched, killed));
    let ended = drain();
    assert_eq!(ended.get(&main), Some(&ExitCause::Exited(7)));
    assert_eq!(ended.get(&victim), Some(&ExitCause::Signaled { signal: 9, core: false }));
    let orphans = ended.values().filter(|cause| **cause == ExitCause::Exited(6)).count();
    assert_eq!(orphans, 300, "every sleeper outlived its shell and came to us");
    assert_eq!(Reaper::new().poll(), Poll::NoChildren);
}

#[test]
fn running_children_are_not_waited_for() {
    let world = World::new();
    let launched = Native::new().expect("a node").launch(&world.spec(&["sleep", "1000"])).expect("a container");
    assert_eq!(Reaper::new().poll(), Poll::NoneEnded);
    hpk_sys::signals::send(std::os::fd::AsFd::as_fd(&launched.pidfd), libc::SIGTERM).expect("a signal");
    hpk_sys::signals::send(std::os::fd::AsFd::as_fd(&launched.pidfd), libc::SIGKILL).expect("a signal");
    assert_eq!(common::wait(launched.pid), ExitCause::Signaled { signal: 9, core: false });
    let gone = hpk_sys::signals::send(std::os::fd::AsFd::as_fd(&launched.pidfd), libc::SIGKILL);
    assert_eq!(gone, Err(hpk_sys::Errno::ESRCH));
}

#[test]
fn on_old_kernels_all_of_this_holds() {
    common::old_kernel::again(libc::ENOSYS, "on_old_kernels");
}
