//! A pod whose job Slurm has requeued.

use super::*;
use hpk_api::plan::{MountPlan, SandboxPlan, VolumePlan};
use hpk_api::state::PodState;

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

/// What a former job of the pod said last, and which containers the next one starts.
fn starts_after_requeue(plan: &SandboxPlan, before: &PodState) -> (Vec<usize>, PodState) {
    let now = Now { mono: std::time::Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH };
    let mut again = Supervisor::new(plan.clone(), Identity::default(), Some(before), now);
    let mut out = Vec::new();
    again.step(now, Event::SandboxReady { network: hpk_api::cni::CniResult::default() }, &mut out);
    let starts = out
        .iter()
        .filter_map(|a| if let crate::Action::Start { container, .. } = a { Some(container.0) } else { None });
    (starts.collect(), again.state().clone())
}

#[test]
fn what_had_succeeded_is_not_run_again_where_its_results_are_kept() {
    let on_node = |name: &str, read_only: bool| {
        let mount = serde_json::json!({"volume": "node", "path": "/x", "read_only": read_only});
        let mount: MountPlan = serde_json::from_value(mount).unwrap();
        ContainerPlan { mounts: vec![mount], ..container(name) }
    };
    for policy in [OnFailure, Never] {
        let init = vec![container("fetch"), on_node("unpack", false)];
        let mut plan = pod(
            policy,
            init,
            vec![
                container("done"),
                on_node("reads", true),
                on_node("writes", false),
                container("runs"),
                container("ends"),
            ],
        );
        let node = VolumePlan::EmptyDir { memory: false, shared: false, size_limit: None };
        plan.volumes.insert("node".to_owned(), node);
        let mut world = World::ready(plan.clone());
        for name in ["fetch", "unpack"] {
            world.launch(name);
            world.exit(name, 0);
        }
        for name in ["done", "reads", "writes", "runs", "ends"] {
            world.launch(name);
        }
        for name in ["done", "reads", "writes"] {
            world.exit(name, 0);
        }
        // Slurm ends the job: one of those that are told to end does so with 0.
        world.event(Event::Stop { cause: StopCause::Signal, grace_seconds: None });
        world.exit("ends", 0);
        let before = world.supervisor.state().clone();
        let (starts, after) = starts_after_requeue(&plan, &before);
        assert_eq!(starts, [1], "{policy:?}: what wrote to the node's disk");
        let terminated = |state: &PodState, name: &str| matches!(&state.planned().find(|c| c.name == name).unwrap().state, RunState::Terminated(end) if end.exit_code == 0);
        for (name, done) in [
            ("fetch", true),
            ("unpack", false),
            ("done", true),
            ("reads", true),
            ("writes", false),
            ("runs", false),
            ("ends", false),
        ] {
            assert_eq!(terminated(&after, name), done, "{policy:?} {name}");
        }
        assert!(after.init_containers[0].ready, "an init container that succeeded");
    }
    // By its policy it is started again.
    let mut world = running(Always, container("c"));
    world.exit("c", 0);
    let before = world.supervisor.state().clone();
    assert_eq!(starts_after_requeue(&pod(Always, vec![], named(&["c"])), &before).0, [0]);
}

#[test]
fn a_pod_that_was_done_is_not_begun_again() {
    let mut sidecar = container("side");
    sidecar.restart_policy = Some(Always);
    let plan = pod(Never, vec![sidecar], named(&["a", "b"]));
    let mut world = World::ready(plan.clone());
    world.launch("side");
    world.launch("a");
    world.launch("b");
    world.exit("a", 0);
    world.exit("b", 3);
    world.exit("side", 0);
    let before = world.supervisor.state().clone();
    assert!(before.finished && before.stopping.is_none());
    let (starts, after) = starts_after_requeue(&plan, &before);
    assert_eq!((starts, after.finished), (vec![], true));
    assert!(matches!(&after.containers[1].state, RunState::Terminated(end) if end.exit_code == 3));
    // So it is when it was deleted, or its deadline came.
    let mut late = running(Always, container("c"));
    late.event(Event::Stop { cause: StopCause::DeadlineExceeded, grace_seconds: None });
    late.exit("c", 0);
    let before = late.supervisor.state().clone();
    assert_eq!(starts_after_requeue(&pod(Always, vec![], named(&["c"])), &before).0, Vec::<usize>::new());
}
