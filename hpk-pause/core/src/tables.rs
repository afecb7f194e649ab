//! The rules of pod life, each as a short story in the test world.

use crate::testing::{container, pod};
use crate::world::{World, probe};
use crate::{Event, ExitCause, Hook, HookFailure, Identity, LaunchFailure, Now, ProbeOutcome, Supervisor};
use hpk_api::control::Update;
use hpk_api::plan::RestartPolicy::{Always, Never, OnFailure};
use hpk_api::plan::{Blocked, ContainerPlan, ExitCodeOperator, RestartAction, RestartPolicy, RestartRule};
use hpk_api::probe::{Handler, ProbeKind};
use hpk_api::state::{RunState, StopCause};

fn named(names: &[&str]) -> Vec<ContainerPlan> {
    names.iter().map(|n| container(n)).collect()
}

fn sidecar(name: &str) -> ContainerPlan {
    let mut c = container(name);
    c.restart_policy = Some(Always);
    c
}

fn running(policy: RestartPolicy, c: ContainerPlan) -> World {
    let mut world = World::ready(pod(policy, vec![], vec![c]));
    world.launch_all();
    world
}

fn fail(text: &str) -> ProbeOutcome {
    ProbeOutcome::Failure(text.to_owned())
}

mod restarts {
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
        let delays: Vec<u64> =
            (1..7).map(|i| (starts[i + 1] - starts[0]) - u64::try_from(i).unwrap() * 301_000).collect();
        assert_eq!(delays, [10_000, 20_000, 40_000, 80_000, 160_000, 300_000]);
        assert_eq!(world.state("c").restart_count, 6, "the eighth instance is being made");
        assert!(
            world.events().contains(&"BackOff: Back-off restarting failed container c in pod p_ns(u-1)".to_owned())
        );
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
        assert_eq!(
            (world.shown("c").as_str(), world.state("c").restart_count),
            ("Waiting(CreateContainerConfigError)", 0)
        );
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
    fn a_requeued_pod_keeps_its_counts() {
        let mut world = running(Always, container("c"));
        world.exit("c", 1);
        world.launch("c");
        let before = world.supervisor.state().clone();
        let now = Now { mono: std::time::Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH };
        let plan = pod(Always, vec![], named(&["c"]));
        let mut again = Supervisor::new(plan, Identity::default(), Some(&before), now);
        let mut out = Vec::new();
        again.step(now, Event::SandboxReady { network: hpk_api::cni::CniResult::default() }, &mut out);
        assert!(out.contains(&crate::Action::Start { container: crate::ContainerIndex(0), instance: 2 }));
        assert!(again.state().sequence > before.sequence);
        assert_eq!(again.state().containers[0].last_termination.as_ref().unwrap().reason, "ContainerStatusUnknown");
    }
}

mod order {
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
}

mod probes {
    use super::*;

    #[test]
    fn readiness_runs_at_once_when_started_and_then_by_its_period() {
        let mut c = container("c");
        c.probes.readiness = Some(probe(10, 1, 3));
        let mut world = running(Always, c);
        assert!(world.probing("c", ProbeKind::Readiness) && !world.state("c").ready);
        world.probe("c", ProbeKind::Readiness, fail("not yet"));
        assert!(world.events().contains(&"Unhealthy: Readiness probe failed: not yet".to_owned()));
        world.pass(9.9);
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
            assert!(
                world.events().contains(&"Killing: Container c failed liveness probe, will be restarted".to_owned())
            );
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
        world.probe("c", ProbeKind::Readiness, ProbeOutcome::Success);
        world.stop(StopCause::Requested, 30);
        world.pass(1.0);
        assert!(!world.probing("c", ProbeKind::Liveness));
        world.probe("c", ProbeKind::Readiness, fail("draining"));
        assert!(!world.state("c").ready);
    }
}

mod ends {
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
}
