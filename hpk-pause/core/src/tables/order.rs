//! Order of starts: init containers, sidecars, hooks, ephemeral containers; all containers afresh.

use super::*;

#[test]
fn init_containers_one_after_the_other() {
    let mut world = World::ready(pod(Always, named(&["i", "j"]), named(&["c"])));
    assert_eq!(world.shown("c"), "Waiting(PodInitializing)");
    world.launch("i");
    assert!(!world.is_starting("j"));
    world.exit("i", 1);
    assert!(world.is_starting("i"), "it failed: again");
    world.launch("i");
    world.exit("i", 0);
    assert!(world.state("i").ready);
    world.launch("j");
    assert!(!world.is_starting("c"));
    world.exit("j", 0);
    assert!(world.is_starting("c"));
}

#[test]
fn a_failed_init_container_with_never_fails_the_pod() {
    let mut world = World::ready(pod(Never, named(&["i"]), named(&["c"])));
    world.launch("i");
    world.exit("i", 1);
    assert_eq!(world.finished, Some(false));
    assert_eq!(world.shown("c"), "Waiting(PodInitializing)");
}

#[test]
fn a_sidecar_gates_by_its_startup_probe_and_runs_on() {
    let mut s = sidecar("s");
    s.probes.startup = Some(probe(1, 1, 3));
    let mut world = World::ready(pod(Never, vec![s, container("i")], named(&["c"])));
    world.launch("s");
    assert!(!world.is_starting("i"));
    world.pass(1.0);
    world.probe("s", ProbeKind::Startup, ProbeOutcome::Success);
    world.launch("i");
    world.exit("i", 0);
    world.launch("c");
    world.exit("s", 0);
    assert!(world.is_starting("s"), "restarted for ever, even with Never and exit code 0");
    world.launch("s");
    world.exit("c", 0);
    assert!(world.events().contains(&"Killing: Stopping container s".to_owned()));
    assert_eq!(world.finished, None);
    world.exit("s", 143);
    assert_eq!(world.finished, Some(true), "its exit does not count");
}

#[test]
fn a_sidecar_that_fails_its_startup_probe_is_restarted() {
    let mut s = sidecar("s");
    s.probes.startup = Some(probe(1, 1, 1));
    let mut world = World::ready(pod(Never, vec![s], named(&["c"])));
    world.launch("s");
    world.pass(1.0);
    world.probe("s", ProbeKind::Startup, fail("no"));
    assert!(world.events().contains(&"Killing: Init container s failed startup probe".to_owned()));
    world.exit("s", 143);
    assert!(world.is_starting("s") && !world.is_starting("c"));
}

#[test]
fn containers_start_in_order_behind_post_start_hooks() {
    let mut a = container("a");
    a.lifecycle.post_start = Some(Handler::Sleep { seconds: 1 });
    let mut world = World::ready(pod(Always, vec![], vec![a, container("b")]));
    world.launch("a");
    assert!(!world.is_starting("b") && !world.state("a").started);
    world.hook("a", Hook::PostStart, Ok(()));
    assert!(world.is_starting("b") && world.state("a").started && world.state("a").ready);
}

#[test]
fn containers_without_post_start_hooks_start_side_by_side() {
    let mut world = World::ready(pod(Always, vec![], named(&["a", "b", "c"])));
    assert!(["a", "b", "c"].iter().all(|name| world.is_starting(name)));
    world.launch_fails("a", LaunchFailure::Start("no such command".to_owned()));
    world.launch("c");
    assert!(world.is_starting("b") && world.state("c").started);
}

#[test]
fn ephemeral_containers_start_at_once_and_once() {
    let mut world = World::ready(pod(Always, named(&["i"]), named(&["c"])));
    let update = Update { ephemeral_containers: named(&["e"]), ..Update::default() };
    world.event(Event::Update(Box::new(update.clone())));
    world.launch("e");
    world.exit("e", 1);
    world.event(Event::Update(Box::new(update)));
    assert!(!world.is_starting("e"));
    assert_eq!(world.shown("e"), "Terminated(1 Error)");
    world.launch("i");
    world.exit("i", 0);
    assert!(world.is_starting("c"));
}

#[test]
fn restart_all_ends_everything_and_begins_with_the_first_init_container() {
    let mut other = container("d");
    other.lifecycle.pre_stop = Some(Handler::Sleep { seconds: 5 });
    let mut world = World::ready(pod(Never, vec![container("i"), sidecar("s")], vec![restarts_all("c"), other]));
    world.launch("i");
    world.exit("i", 0);
    world.launch_all();
    world.exit("c", 42);
    assert!(world.supervisor.state().restarting_all);
    assert_eq!((world.signalled("d").len(), world.signalled("s").len()), (1, 0), "one after the other, no preStop");
    world.exit("d", 143);
    assert_eq!(world.signalled("s").len(), 1);
    world.exit("s", 143);
    for name in ["i", "s", "c", "d"] {
        assert_eq!(world.shown(name), "Waiting(RestartingAllContainers)");
        assert_eq!(world.state(name).restart_count, 1);
        assert_eq!(world.state(name).last_termination.as_ref().unwrap().exit_code, 137);
    }
    assert!(world.is_starting("i") && !world.is_starting("c"));
    world.launch("i");
    world.exit("i", 0);
    world.launch_all();
    assert_eq!(world.shown("c"), "Running");
    world.exit("c", 0);
    world.exit("d", 0);
    world.exit("s", 0);
    assert_eq!(world.finished, Some(true));
}

/// A container that has all started again by its exit with 42.
fn restarts_all(name: &str) -> ContainerPlan {
    let mut source = container(name);
    source.restart_policy = Some(Never);
    let (action, operator) = (RestartAction::RestartAllContainers, ExitCodeOperator::In);
    source.restart_rules = vec![RestartRule { action, operator, values: vec![42] }];
    source
}

#[test]
fn an_exit_that_restarts_all_at_once_is_told_by_an_event() {
    let mut world = running(Never, restarts_all("c"));
    world.exit("c", 42);
    assert_eq!(world.shown("c"), "Waiting(RestartingAllContainers)");
    assert_eq!(world.state("c").last_termination.as_ref().unwrap().exit_code, 137, "upstream's mark hides the 42");
    let told = "RestartAllContainersStarted: Container c exited with 42, all containers will be restarted";
    assert!(world.events().iter().any(|e| e == told), "{:?}", world.events());
    assert!(world.is_starting("c"));
}

#[test]
fn what_waits_while_all_restart_keeps_its_count_and_its_last_end() {
    let mut world = World::ready(pod(Always, vec![], vec![restarts_all("c"), container("d")]));
    world.launch_all();
    for code in [1, 3] {
        world.exit("d", code);
        if world.is_starting("d") {
            world.launch("d");
        }
    }
    assert_eq!((world.shown("d").as_str(), world.state("d").restart_count), ("Waiting(CrashLoopBackOff)", 1));
    world.exit("c", 42);
    assert_eq!((world.shown("d").as_str(), world.state("d").restart_count), ("Waiting(ContainerCreating)", 1));
    assert_eq!(world.state("d").last_termination.as_ref().unwrap().exit_code, 3);
    assert!(world.is_starting("d"), "without back-off");
    world.launch("d");
    assert_eq!(world.state("d").restart_count, 2);
    assert_eq!(world.state("d").last_termination.as_ref().unwrap().exit_code, 3);
}
