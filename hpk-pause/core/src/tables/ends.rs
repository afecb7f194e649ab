//! Ends: grace periods, hooks, order, deadlines.

use super::*;

#[test]
fn grace_then_kill_and_the_events() {
    let mut world = running(Always, container("c"));
    world.stop(StopCause::Requested, 10);
    world.pass(20.0);
    assert_eq!(world.signalled("c"), [(0, 15), (10_000, 9)]);
    assert_eq!(world.events().last().unwrap(), "Killing: Stopping container c");
    world.exit_as("c", ExitCause::Signal(9), false);
    assert_eq!(world.shown("c"), "Terminated(137 Error)");
    assert_eq!(world.finished, Some(false));
    assert_eq!(world.supervisor.state().stopping, Some(StopCause::Requested));
}

#[test]
fn even_a_forced_deletion_leaves_two_seconds() {
    let mut world = running(Always, container("c"));
    world.stop(StopCause::Requested, 0);
    world.pass(5.0);
    assert_eq!(world.signalled("c"), [(0, 15), (2_000, 9)]);
}

#[test]
fn a_later_shorter_grace_wins() {
    let mut world = running(Always, container("c"));
    world.stop(StopCause::Requested, 60);
    world.pass(1.0);
    world.stop(StopCause::Requested, 5);
    world.stop(StopCause::Requested, 50);
    world.pass(100.0);
    assert_eq!(world.signalled("c"), [(0, 15), (6_000, 9)]);
}

#[test]
fn the_stop_signal_is_the_containers() {
    let mut c = container("c");
    c.stop_signal = 3;
    let mut world = running(Always, c);
    world.stop(StopCause::Signal, 10);
    assert_eq!(world.signalled("c"), [(0, 3)]);
}

#[test]
fn pre_stop_runs_first_and_its_seconds_count() {
    let mut c = container("c");
    c.lifecycle.pre_stop = Some(Handler::Sleep { seconds: 3 });
    let mut world = running(Always, c.clone());
    world.stop(StopCause::Requested, 10);
    world.pass(3.5);
    assert!(world.signalled("c").is_empty());
    world.hook("c", Hook::PreStop, Err(HookFailure::default()));
    assert!(world.events().contains(&"FailedPreStopHook: PreStopHook failed".to_owned()));
    world.pass(20.0);
    assert_eq!(world.signalled("c"), [(3_500, 15), (3_500 + 7_000, 9)]);

    let mut world = running(Always, c);
    world.stop(StopCause::Requested, 10);
    world.pass(20.0);
    assert_eq!(world.signalled("c"), [(10_000, 15), (12_000, 9)], "a hook that outlasts the grace period");
}

#[test]
fn sidecars_end_last_in_reverse_order_but_their_hooks_run_at_once() {
    let mut t = sidecar("t");
    t.lifecycle.pre_stop = Some(Handler::Sleep { seconds: 1 });
    let mut world = World::ready(pod(Always, vec![sidecar("s"), t], named(&["c"])));
    world.launch_all();
    world.stop(StopCause::Requested, 30);
    assert_eq!(world.process("t").1.hooks, [Hook::PreStop]);
    assert_eq!((world.signalled("c").len(), world.signalled("s").len()), (1, 0));
    world.pass(2.0);
    world.hook("t", Hook::PreStop, Ok(()));
    assert!(world.signalled("t").is_empty(), "its turn has not come");
    world.pass(3.0);
    world.exit("c", 0);
    assert_eq!(world.signalled("t"), [(5_000, 15)]);
    assert!(world.signalled("s").is_empty());
    world.exit("t", 0);
    assert_eq!(world.signalled("s"), [(5_000, 15)]);
    world.pass(60.0);
    assert_eq!(world.signalled("s")[1], (5_000 + 25_000, 9));
    world.exit("s", 137);
    assert!(world.finished.is_some());
}

#[test]
fn the_grace_period_bounds_the_wait_for_a_turn() {
    let mut world = World::ready(pod(Always, vec![sidecar("s")], named(&["c"])));
    world.launch_all();
    world.stop(StopCause::Requested, 5);
    world.pass(30.0);
    assert_eq!(world.signalled("s"), [(5_000, 15), (7_000, 9)]);
}

#[test]
fn nothing_starts_after_a_stop() {
    let mut world = running(Always, container("c"));
    world.exit("c", 1);
    world.stop(StopCause::Requested, 5);
    assert!(world.finished.is_none(), "a start is under way");
    world.launch("c");
    assert_eq!(world.signalled("c").len(), 1);
    world.exit("c", 143);
    assert_eq!(world.finished, Some(false));
}

#[test]
fn a_crash_loop_shows_its_last_end_once_the_pod_stops() {
    let mut world = running(Always, container("c"));
    world.exit("c", 1);
    world.launch("c");
    world.exit("c", 2);
    assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
    world.stop(StopCause::Requested, 5);
    assert_eq!(world.shown("c"), "Terminated(2 Error)");
    assert_eq!(world.state("c").last_termination.as_ref().unwrap().exit_code, 1);
    assert!(world.finished.is_some());
}

#[test]
fn the_active_deadline() {
    let mut plan = pod(Always, vec![], named(&["c"]));
    plan.active_deadline_seconds = Some(60);
    let mut world = World::ready(plan);
    world.launch_all();
    world.pass(59.0);
    assert!(world.signalled("c").is_empty());
    world.pass(100.0);
    assert_eq!(world.signalled("c"), [(60_000, 15), (90_000, 9)]);
    assert_eq!(world.supervisor.state().stopping, Some(StopCause::DeadlineExceeded));
}

#[test]
fn a_post_start_hook_that_fails_during_the_kill_does_not_begin_it_again() {
    let mut c = container("c");
    c.lifecycle.post_start = Some(Handler::Sleep { seconds: 60 });
    c.lifecycle.pre_stop = Some(Handler::Sleep { seconds: 1 });
    let mut world = running(Always, c.clone());
    c.image = "busybox:2".to_owned();
    world.event(Event::Update(Box::new(Update { containers: vec![c], ..Update::default() })));
    world.hook("c", Hook::PreStop, Ok(()));
    world.hook("c", Hook::PostStart, Err(HookFailure::default()));
    assert_eq!(world.signalled("c").len(), 1, "no second TERM");
    assert!(!world.events().iter().any(|e| e.starts_with("FailedPostStartHook")), "{:?}", world.events());
    world.exit("c", 0);
    assert!(world.is_starting("c"), "its image changed: it comes back");
}

#[test]
fn a_pod_that_ends_during_a_post_start_hook_never_becomes_ready() {
    let mut c = container("c");
    c.lifecycle.post_start = Some(Handler::Sleep { seconds: 60 });
    c.probes.readiness = Some(probe(1, 1, 1));
    let mut world = running(Always, c);
    world.stop(StopCause::Requested, 30);
    world.pass(5.0);
    assert!(!world.probing("c", ProbeKind::Readiness) && !world.state("c").started && !world.state("c").ready);
}

#[test]
fn a_start_that_outlasts_the_stop_has_what_is_left_of_the_grace_period() {
    let mut world = World::ready(pod(Always, vec![], named(&["c"])));
    world.stop(StopCause::Requested, 30);
    world.pass(20.0);
    world.launch("c");
    world.pass(30.0);
    assert_eq!(world.signalled("c"), [(20_000, 15), (30_000, 9)]);
}

#[test]
fn a_start_that_fails_while_the_pod_ends_leaves_the_last_end() {
    let mut world = running(Always, container("c"));
    world.exit("c", 3);
    world.stop(StopCause::Requested, 30);
    world.launch_fails("c", LaunchFailure::Create("no".to_owned()));
    assert_eq!((world.shown("c").as_str(), world.finished), ("Terminated(3 Error)", Some(false)));
}

#[test]
fn a_failed_post_start_hook_kills_and_shows_why() {
    let mut c = container("c");
    c.lifecycle.post_start = Some(Handler::Exec { command: vec!["false".to_owned()] });
    let mut world = running(Always, c);
    let failure = HookFailure { error: "command 'false' exited with 1: ".to_owned(), output: String::new() };
    world.hook("c", Hook::PostStart, Err(failure));
    let events = world.events();
    assert_eq!(
        events[events.len() - 2..],
        ["FailedPostStartHook: PostStartHook failed", "Killing: FailedPostStartHook"]
    );
    world.exit("c", 143);
    assert_eq!(world.shown("c"), "Waiting(PostStartHookError)");
    assert!(world.is_starting("c"));
}

#[test]
fn a_sandbox_that_cannot_be_made_fails_the_pod() {
    let mut world = World::new(pod(Always, vec![], named(&["c"])));
    world.event(Event::SandboxFailed { message: "no TUN".to_owned() });
    assert_eq!(world.finished, Some(false));
    assert_eq!(world.supervisor.state().sandbox_error.as_deref(), Some("no TUN"));
    assert_eq!(world.shown("c"), "Waiting(CreatePodSandboxError)");
}
