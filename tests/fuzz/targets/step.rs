//! The supervisor's decisions: a plan (JSON up to the first 0 byte), then events, four bytes each. Whatever the plan
//! says and whatever happens when: no panic, no endless step, and a pod that was stopped and whose processes obey ends.
#![no_main]

use hpk_api::control::Update;
use hpk_api::plan::SandboxPlan;
use hpk_api::probe::ProbeKind;
use hpk_api::state::{ContainerUser, StopCause};
use hpk_core::{
    Action, ContainerIndex, Event, Exit, ExitCause, Hook, HookFailure, Identity, LaunchFailure, Now, ProbeOutcome,
    Supervisor,
};
use jiff::{SignedDuration, Timestamp};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use std::time::Duration;

fn now(mono: Duration) -> Option<Now> {
    let since = SignedDuration::try_from(mono).ok()?;
    Some(Now { mono, wall: Timestamp::UNIX_EPOCH.checked_add(since).ok()? })
}

fn event(code: u8, container: usize, detail: u8, plan: &SandboxPlan) -> Event {
    let (container, instance) = (ContainerIndex(container), u32::from(detail >> 4));
    let kind = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness][usize::from(detail % 3)];
    let text = || "t".to_owned();
    let outcome = |n| match n % 4 {
        0 => ProbeOutcome::Success,
        1 => ProbeOutcome::Warning(text()),
        2 => ProbeOutcome::Failure(text()),
        _ => ProbeOutcome::Error(text()),
    };
    let exit = |cause| Exit { cause, oom: detail & 8 != 0, message: text(), at: None };
    let hook = if detail & 1 == 0 { Hook::PostStart } else { Hook::PreStop };
    match code % 12 {
        0 => Event::Tick,
        1 => Event::SandboxReady { network: hpk_api::cni::CniResult::default() },
        2 => Event::Launched { container, instance, user: ContainerUser::default() },
        3 => Event::LaunchFailed {
            container,
            instance,
            failure: match detail % 3 {
                0 => LaunchFailure::Config(text()),
                1 => LaunchFailure::Create(text()),
                _ => LaunchFailure::Start(text()),
            },
        },
        4 => Event::Exited { container, instance, exit: exit(ExitCause::Code(i32::from(detail & 7))) },
        5 => Event::Exited { container, instance, exit: exit(ExitCause::Signal(9)) },
        6 => Event::ProbeDone { container, instance, kind, outcome: outcome(detail >> 2) },
        7 => Event::HookDone { container, instance, hook, result: Ok(()) },
        8 => Event::HookDone { container, instance, hook, result: Err(HookFailure::default()) },
        9 => Event::Stop { cause: StopCause::Signal, grace_seconds: Some(u32::from(detail)) },
        10 => Event::Update(Box::new(Update { containers: plan.containers.clone(), ..Update::default() })),
        _ => Event::SandboxFailed { message: text() },
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (text, events) = bytes.split_at(bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len()));
    let Ok(plan) = serde_json::from_slice::<SandboxPlan>(text) else { return };
    if plan.containers.is_empty() || plan.containers.len() + plan.init_containers.len() > 16 {
        return;
    }
    let mut mono = Duration::ZERO;
    let Some(first) = now(mono) else { return };
    let mut pod = Supervisor::new(plan.clone(), Identity::default(), None, first);
    // Instances that have a process.
    let mut live = BTreeSet::new();
    let mut out = Vec::new();
    let mut step = |pod: &mut Supervisor, at: Duration, event: Event| {
        let Some(at) = now(at) else { return };
        match &event {
            Event::Launched { container, instance, .. } => drop(live.insert((*container, *instance))),
            Event::Exited { container, instance, .. } => drop(live.remove(&(*container, *instance))),
            _ => {}
        }
        pod.step(at, event, &mut out);
        for action in out.drain(..) {
            assert!(!pod.state().finished || !matches!(action, Action::Start { .. }), "nothing starts after the end");
        }
    };
    for e in events.chunks_exact(4) {
        mono += Duration::from_millis(u64::from(e[0]) * 200);
        step(&mut pod, mono, event(e[1], usize::from(e[2]), e[3], &plan));
    }
    // To an end: what is asked to start starts, what is told to end ends.
    step(&mut pod, mono, Event::Stop { cause: StopCause::Requested, grace_seconds: Some(0) });
    for _ in 0..200 {
        if pod.state().finished {
            return;
        }
        mono += Duration::from_secs(1);
        for container in (0..pod.len()).map(ContainerIndex) {
            for instance in 0..64 {
                step(
                    &mut pod,
                    mono,
                    Event::LaunchFailed { container, instance, failure: LaunchFailure::Create(String::new()) },
                );
            }
            if let Some(instance) = pod.running_instance(container) {
                let exit = Exit { cause: ExitCause::Signal(9), oom: false, message: String::new(), at: None };
                step(&mut pod, mono, Event::Exited { container, instance, exit });
            }
        }
    }
    panic!("a stopped pod does not end: {:?}", pod.state());
});
