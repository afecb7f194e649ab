//! A pod of ten probed containers at rest, for the test and the measurement of `step()`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "only tests and measurements use it"
)]

use hpk_api::plan::SandboxPlan;
use hpk_api::probe::ProbeKind;
use hpk_api::state::ContainerUser;
use hpk_core::{Action, ContainerIndex, Event, Identity, Now, ProbeOutcome, Supervisor};
use jiff::Timestamp;
use std::time::Duration;

pub const CONTAINERS: usize = 10;

fn plan() -> SandboxPlan {
    let probe = r#"{"handler": {"tcp_socket": {"port": 1}}, "timeout_seconds": 1, "period_seconds": 1, "success_threshold": 1, "failure_threshold": 3}"#;
    let containers: Vec<String> = (0..CONTAINERS)
        .map(|i| format!(r#"{{"name": "c{i}", "image": "i", "image_ref": {{"folder": "f", "id": "i"}}, "argv": ["a"], "probes": {{"liveness": {probe}}}}}"#))
        .collect();
    let text = format!(
        r#"{{"version": 1, "pod": {{"namespace": "n", "name": "p", "uid": "u"}}, "hostname": "p", "restart_policy": "Always",
            "termination_grace_period_seconds": 30, "network": {{"mode": "host"}}, "containers": [{}]}}"#,
        containers.join(",")
    );
    serde_json::from_str(&text).expect("a plan")
}

pub fn at(nanos: u64) -> Now {
    Now { mono: Duration::from_nanos(nanos), wall: Timestamp::UNIX_EPOCH }
}

pub fn running() -> Supervisor {
    let mut supervisor = Supervisor::new(plan(), Identity::default(), None, at(0));
    let mut out = Vec::new();
    supervisor.step(at(0), Event::SandboxReady { network: hpk_api::cni::CniResult::default() }, &mut out);
    while let Some(Action::Start { container, instance }) =
        out.iter().copied().find(|a| matches!(a, Action::Start { .. }))
    {
        out.retain(|a| *a != Action::Start { container, instance });
        supervisor.step(at(1), Event::Launched { container, instance, user: ContainerUser::default() }, &mut out);
    }
    supervisor
}

/// One second of the pod: every liveness probe runs and succeeds.
pub fn second(supervisor: &mut Supervisor, second: u64, out: &mut Vec<Action>) {
    let now = at(second * 1_000_000_000);
    out.clear();
    supervisor.step(now, Event::Tick, out);
    assert_eq!(out.len(), CONTAINERS, "each container is probed");
    out.clear();
    for i in 0..CONTAINERS {
        let (kind, outcome) = (ProbeKind::Liveness, ProbeOutcome::Success);
        supervisor.step(now, Event::ProbeDone { container: ContainerIndex(i), instance: 0, kind, outcome }, out);
    }
    assert!(out.is_empty(), "nothing changed");
}
