//! Restarts: policies, back-off, exit causes, what a change of the plan does.

use super::*;

#[test]
fn crash_loop_in_time_and_words() {
    let mut world = World::ready(pod(Always, vec![], named(&["c"])));
    for _ in 0..7 {
        world.launch("c");
        world.exit("c", 1);
        world.pass(301.0);
    }
    let starts = world.starts("c");
    let gaps: Vec<u64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    // After each wait of 301 s the world begins the next instance; the delay counts from its end.
    assert_eq!(gaps[0], 0);
    let delays: Vec<u64> = (1..7).map(|i| (starts[i + 1] - starts[0]) - u64::try_from(i).unwrap() * 301_000).collect();
    assert_eq!(delays, [10_000, 20_000, 40_000, 80_000, 160_000, 300_000]);
    assert_eq!(world.state("c").restart_count, 6, "the eighth instance is being made");
    assert!(world.events().contains(&"BackOff: Back-off restarting failed container c in pod p_ns(u-1)".to_owned()));
}

#[test]
fn waiting_shows_the_delay_and_the_last_end() {
    let mut world = running(Always, container("c"));
    world.exit("c", 3);
    world.launch("c");
    world.exit("c", 4);
    assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
    let c = world.state("c");
    let RunState::Waiting { message, .. } = &c.state else { panic!() };
    assert_eq!(message, "back-off 10s restarting failed container=c pod=p_ns(u-1)");
    assert_eq!(c.last_termination.as_ref().unwrap().exit_code, 4);
    assert_eq!(c.restart_count, 1);
    world.pass(10.0);
    world.launch("c");
    assert_eq!((world.shown("c").as_str(), world.state("c").restart_count), ("Running", 2));
}

#[test]
fn policies_and_the_pods_end() {
    for (policy, code, restarted, succeeded) in [
        (Always, 0, true, None),
        (Always, 1, true, None),
        (OnFailure, 0, false, Some(true)),
        (OnFailure, 1, true, None),
        (Never, 0, false, Some(true)),
        (Never, 1, false, Some(false)),
    ] {
        let mut world = running(policy, container("c"));
        world.exit("c", code);
        assert_eq!(world.is_starting("c"), restarted, "{policy:?} {code}");
        assert_eq!(world.finished, succeeded, "{policy:?} {code}");
    }
}

#[test]
fn exit_causes() {
    for (cause, oom, shown) in [
        (ExitCause::Code(0), false, "Terminated(0 Completed)"),
        (ExitCause::Code(7), false, "Terminated(7 Error)"),
        (ExitCause::Code(137), false, "Terminated(137 Error)"),
        (ExitCause::Signal(9), false, "Terminated(137 Error)"),
        (ExitCause::Signal(9), true, "Terminated(137 OOMKilled)"),
        (ExitCause::Signal(15), false, "Terminated(143 Error)"),
    ] {
        let mut world = running(Never, container("c"));
        world.exit_as("c", cause, oom);
        assert_eq!(world.shown("c"), shown);
    }
}

#[test]
fn a_changed_image_restarts_and_starts_the_back_off_afresh() {
    let mut world = running(Always, container("c"));
    world.exit("c", 1);
    world.launch("c");
    world.exit("c", 1);
    assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
    let mut new = container("c");
    new.image = "busybox:2".to_owned();
    world.event(Event::Update(Box::new(Update { containers: vec![new.clone()], ..Update::default() })));
    assert!(world.is_starting("c"), "another key has no back-off");
    world.launch("c");
    new.image = "busybox:3".to_owned();
    world.event(Event::Update(Box::new(Update { containers: vec![new.clone()], ..Update::default() })));
    assert!(world.events().contains(&"Killing: Container c definition changed, will be restarted".to_owned()));
    assert_eq!(world.signalled("c").len(), 1);
    world.exit("c", 0);
    assert!(world.is_starting("c"));
    world.launch("c");
    new.argv.push("x".to_owned());
    world.event(Event::Update(Box::new(Update { containers: vec![new], ..Update::default() })));
    assert_eq!(world.signalled("c").len(), 1, "only the image counts");
}

#[test]
fn an_image_that_changes_during_the_start_restarts_once_it_runs() {
    let mut world = World::ready(pod(Always, vec![], named(&["c"])));
    let mut new = container("c");
    new.image = "busybox:2".to_owned();
    world.event(Event::Update(Box::new(Update { containers: vec![new], ..Update::default() })));
    world.launch("c");
    assert_eq!(world.signalled("c").len(), 1, "what was started is the old one");
    assert!(world.events().contains(&"Killing: Container c definition changed, will be restarted".to_owned()));
    world.exit("c", 143);
    world.launch("c");
    assert_eq!((world.shown("c").as_str(), world.signalled("c").len()), ("Running", 1));
}

#[test]
fn changed_resources_start_the_back_off_afresh_and_a_changed_command_does_not() {
    let change = |what: fn(&mut ContainerPlan)| {
        let mut world = running(Always, container("c"));
        world.exit("c", 1);
        world.launch("c");
        world.exit("c", 1);
        assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
        let mut new = container("c");
        what(&mut new);
        world.event(Event::Update(Box::new(Update { containers: vec![new], ..Update::default() })));
        world.is_starting("c")
    };
    assert!(change(|c| c.resources.limits.extend([("cpu".to_owned(), 500)])));
    assert!(change(|c| c.resources.requests.extend([("memory".to_owned(), 1 << 20)])));
    assert!(!change(|c| c.argv.push("x".to_owned())));
}

#[test]
fn start_error_is_an_instance_and_create_error_is_not() {
    let mut world = World::ready(pod(Always, vec![], named(&["c"])));
    world.launch_fails("c", LaunchFailure::Create("no".to_owned()));
    assert_eq!(world.shown("c"), "Waiting(CreateContainerError)");
    world.pass(9.9);
    assert!(!world.is_starting("c"));
    world.pass(0.1);
    world.launch_fails("c", LaunchFailure::Config("bad".to_owned()));
    assert_eq!((world.shown("c").as_str(), world.state("c").restart_count), ("Waiting(CreateContainerConfigError)", 0));
    world.pass(10.0);
    world.launch_fails("c", LaunchFailure::Start("exec: \"x\": executable file not found in $PATH".to_owned()));
    assert_eq!(world.shown("c"), "Waiting(RunContainerError)");
    let last = world.state("c").last_termination.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_str()), (128, "StartError"));
    assert!(world.is_starting("c"), "the first restart is at once");
    world.launch_fails("c", LaunchFailure::Start("again".to_owned()));
    assert_eq!((world.shown("c").as_str(), world.state("c").restart_count), ("Waiting(CrashLoopBackOff)", 1));
    assert!(world.events().contains(&"Failed: Error: again".to_owned()));
}

#[test]
fn a_start_error_with_never_ends_the_pod() {
    let mut world = World::ready(pod(Never, vec![], named(&["c"])));
    world.launch_fails("c", LaunchFailure::Start("no".to_owned()));
    assert_eq!(world.shown("c"), "Terminated(128 StartError)");
    assert_eq!(world.finished, Some(false));
}

#[test]
fn a_create_error_is_tried_again_even_with_never() {
    let mut world = World::ready(pod(Never, vec![], named(&["c"])));
    world.launch_fails("c", LaunchFailure::Create("no".to_owned()));
    world.pass(10.0);
    assert!(world.is_starting("c"));
}

#[test]
fn blocked_containers_wait_until_an_update() {
    let mut c = container("c");
    c.blocked = Some(Blocked { reason: "CreateContainerConfigError".to_owned(), message: "no key".to_owned() });
    let mut world = World::ready(pod(Never, vec![], vec![c, container("d")]));
    assert_eq!(world.shown("c"), "Waiting(CreateContainerConfigError)");
    world.launch("d");
    world.exit("d", 0);
    assert_eq!(world.finished, None, "the blocked one is still to come");
    world.event(Event::Update(Box::new(Update { containers: named(&["c"]), ..Update::default() })));
    world.launch("c");
    world.exit("c", 0);
    assert_eq!(world.finished, Some(true));
}

#[test]
fn addresses_are_those_of_the_network() {
    let mut plan = pod(Always, vec![], named(&["c"]));
    plan.network.pod_ips = vec!["10.244.0.7".parse().unwrap()];
    let now = Now { mono: std::time::Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH };
    let mut supervisor = Supervisor::new(plan, Identity::default(), None, now);
    let given = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.30.1.2/24"},{"address":"fd30::2/64"}]}"#;
    let network: hpk_api::cni::CniResult = serde_json::from_str(given).unwrap();
    supervisor.step(now, Event::SandboxReady { network: network.clone() }, &mut Vec::new());
    assert_eq!(supervisor.state().pod_ips, network.pod_ips());
    assert_eq!(supervisor.state().network, Some(network));
}

#[test]
fn a_changed_environment_is_for_the_next_start_and_does_not_hurry_it() {
    let mut world = running(Always, container("c"));
    world.exit("c", 1);
    world.launch("c");
    world.exit("c", 1);
    assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
    world.pass(4.0);
    let mut plan = container("c");
    plan.env = vec![("MODE".to_owned(), "good".to_owned())];
    world.event(Event::Update(Box::new(Update { containers: vec![plan], ..Update::default() })));
    assert_eq!(world.shown("c"), "Waiting(CrashLoopBackOff)");
    let backoffs = world.events().iter().filter(|event| event.starts_with("BackOff")).count();
    assert_eq!(backoffs, 1, "it is not told again");
    world.pass(5.9);
    assert!(!world.is_starting("c"));
    world.pass(0.1);
    let index = world.supervisor.find("c").unwrap();
    assert_eq!(world.supervisor.container(index).unwrap().env, [("MODE".to_owned(), "good".to_owned())]);
    world.launch("c");
}
