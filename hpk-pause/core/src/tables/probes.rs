//! Probes and what follows from them.

use super::*;

#[test]
fn readiness_runs_soon_after_the_start_and_then_by_its_period() {
    let mut c = container("c");
    c.probes.readiness = Some(probe(10, 1, 3));
    let mut world = running(Always, c);
    assert!(!world.probing("c", ProbeKind::Readiness) && !world.state("c").ready);
    world.pass(0.4);
    world.probe("c", ProbeKind::Readiness, fail("not yet"));
    assert!(world.events().contains(&"Unhealthy: Readiness probe failed: not yet".to_owned()));
    world.pass(1.0);
    world.probe("c", ProbeKind::Readiness, fail("not yet"));
    world.pass(8.9);
    assert!(!world.probing("c", ProbeKind::Readiness));
    world.pass(0.1);
    world.probe("c", ProbeKind::Readiness, ProbeOutcome::Success);
    assert!(world.state("c").ready);
    for expect in [true, true, false] {
        world.pass(10.0);
        world.probe("c", ProbeKind::Readiness, fail("down"));
        assert_eq!(world.state("c").ready, expect);
    }
    assert!(world.is_live("c"), "readiness kills nothing");
}

#[test]
fn startup_gates_the_others() {
    let mut c = container("c");
    c.probes.startup = Some(probe(5, 1, 3));
    c.probes.liveness = Some(probe(1, 1, 1));
    c.probes.readiness = Some(probe(60, 1, 1));
    let mut world = running(Always, c);
    world.pass(5.0);
    assert!(world.probing("c", ProbeKind::Startup));
    assert!(!world.probing("c", ProbeKind::Liveness) && !world.probing("c", ProbeKind::Readiness));
    world.probe("c", ProbeKind::Startup, ProbeOutcome::Success);
    assert!(world.state("c").started && world.probing("c", ProbeKind::Readiness));
    world.pass(60.0);
    assert!(!world.probing("c", ProbeKind::Startup), "it has done its work");
}

#[test]
fn liveness_failure_kills_with_the_probes_own_grace_and_restarts() {
    for (own, kill_after) in [(None, 30_000), (Some(5), 5_000), (Some(1), 2_000)] {
        let mut c = container("c");
        let mut p = probe(1, 1, 2);
        p.termination_grace_period_seconds = own;
        c.probes.liveness = Some(p);
        let mut world = running(Always, c);
        for _ in 0..2 {
            world.pass(1.0);
            world.probe("c", ProbeKind::Liveness, fail("dead"));
        }
        assert!(world.events().contains(&"Killing: Container c failed liveness probe, will be restarted".to_owned()));
        world.pass(40.0);
        assert!(!world.probing("c", ProbeKind::Liveness), "on hold until a new instance");
        let signals = world.signalled("c");
        assert_eq!(signals[0].1, 15);
        assert_eq!((signals[1].0 - signals[0].0, signals[1].1), (kill_after, 9));
        world.exit_as("c", ExitCause::Signal(9), false);
        assert!(world.is_starting("c"));
    }
}

#[test]
fn liveness_with_never_ends_the_container_for_good() {
    let mut c = container("c");
    c.probes.liveness = Some(probe(1, 1, 1));
    let mut world = running(Never, c);
    world.pass(1.0);
    world.probe("c", ProbeKind::Liveness, fail("dead"));
    assert!(world.events().contains(&"Killing: Container c failed liveness probe".to_owned()));
    world.exit("c", 0);
    assert_eq!(world.finished, Some(true));
}

#[test]
fn on_failure_restarts_after_a_probe_whatever_the_exit_code() {
    let mut c = container("c");
    c.probes.liveness = Some(probe(1, 1, 1));
    let mut world = running(OnFailure, c);
    world.pass(1.0);
    world.probe("c", ProbeKind::Liveness, fail("dead"));
    world.exit("c", 0);
    assert!(world.is_starting("c"));
}

#[test]
fn probe_kills_back_off_by_the_end_before() {
    let mut c = container("c");
    c.probes.liveness = Some(probe(1, 1, 1));
    let mut world = running(Always, c);
    let kill = |world: &mut World| {
        world.pass(1.0);
        world.probe("c", ProbeKind::Liveness, fail("dead"));
        world.exit("c", 143);
    };
    // 1st: no record of an end. 2nd: the first end, no entry yet. 3rd: the second end is less than 10 s ago.
    kill(&mut world);
    world.launch("c");
    kill(&mut world);
    world.launch("c");
    kill(&mut world);
    assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
    world.pass(10.0);
    world.launch("c");
}

#[test]
fn warnings_and_errors() {
    let mut c = container("c");
    c.probes.readiness = Some(probe(1, 1, 1));
    let mut world = running(Always, c);
    world.pass(0.4);
    world.probe("c", ProbeKind::Readiness, ProbeOutcome::Warning("Probe terminated redirects".to_owned()));
    assert!(world.state("c").ready);
    world.pass(1.0);
    world.probe("c", ProbeKind::Readiness, ProbeOutcome::Error("boom".to_owned()));
    assert!(world.state("c").ready, "an error leaves the state");
    let events = world.events();
    assert!(events.contains(&"ProbeWarning: Readiness probe warning: Probe terminated redirects".to_owned()));
    assert!(events.contains(&"Unhealthy: Readiness probe errored and resulted in unknown state: boom".to_owned()));
}

#[test]
fn what_has_ended_is_neither_started_nor_ready_and_begins_with_unknown() {
    let mut c = container("c");
    c.probes.startup = Some(probe(1, 1, 3));
    c.probes.readiness = Some(probe(1, 1, 3));
    let mut world = running(Always, c);
    let both = |world: &World| (world.state("c").started, world.state("c").ready);
    world.pass(1.0);
    world.probe("c", ProbeKind::Startup, ProbeOutcome::Success);
    world.probe("c", ProbeKind::Readiness, ProbeOutcome::Success);
    assert_eq!(both(&world), (true, true));
    world.exit("c", 1);
    assert_eq!(both(&world), (false, false));
    world.launch("c");
    assert_eq!(both(&world), (false, false), "the former instance's results are not the new one's");
    world.pass(1.0);
    world.probe("c", ProbeKind::Startup, ProbeOutcome::Success);
    assert_eq!(both(&world), (true, false));
}

#[test]
fn only_readiness_goes_on_while_the_pod_ends() {
    let mut c = container("c");
    c.probes.liveness = Some(probe(1, 1, 1));
    c.probes.readiness = Some(probe(1, 1, 1));
    let mut world = running(Always, c);
    world.pass(0.4);
    world.probe("c", ProbeKind::Readiness, ProbeOutcome::Success);
    world.stop(StopCause::Requested, 30);
    world.pass(1.0);
    assert!(!world.probing("c", ProbeKind::Liveness));
    world.probe("c", ProbeKind::Readiness, fail("draining"));
    assert!(!world.state("c").ready);
}
