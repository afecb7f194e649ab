//! The rules of pod life, each as a short story in the test world.

mod ends;
mod order;
mod probes;
mod requeue;
mod restarts;

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
