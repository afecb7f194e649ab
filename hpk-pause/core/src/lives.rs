//! Random pods with random lives in the test world, which checks after each step what must always hold.

use crate::testing::{container, pod};
use crate::world::{World, probe};
use crate::{ContainerIndex, Event, Exit, ExitCause, Hook, HookFailure, LaunchFailure, ProbeOutcome};
use hpk_api::control::Update;
use hpk_api::plan::{Blocked, ContainerPlan, ExitCodeOperator, RestartAction, RestartPolicy, RestartRule, SandboxPlan};
use hpk_api::probe::{Handler, ProbeKind};
use hpk_api::state::{ContainerUser, StopCause};
use proptest::prelude::*;

/// What may happen next in a random life.
#[derive(Clone, Debug)]
enum Chance {
    Pass(u32),
    Launch(u8),
    LaunchFails(u8, u8),
    Exit(u8, i32),
    Obey(u8),
    Probe(u8, u8),
    Hook(u8, bool),
    Stop(u32),
    Stray(u8, u32),
    Change(u8, bool),
    Debug(u8),
    Deadline(u64),
    Block(u8, bool),
    Requeue,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        4 => (0..40_000u32).prop_map(Chance::Pass),
        6 => any::<u8>().prop_map(Chance::Launch),
        1 => (any::<u8>(), 0..3u8).prop_map(|(a, b)| Chance::LaunchFails(a, b)),
        4 => (any::<u8>(), prop_oneof![Just(0), Just(1), Just(42)]).prop_map(|(a, b)| Chance::Exit(a, b)),
        2 => any::<u8>().prop_map(Chance::Obey),
        6 => (any::<u8>(), 0..8u8).prop_map(|(a, b)| Chance::Probe(a, b)),
        3 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Chance::Hook(a, b)),
        1 => (0..60u32).prop_map(Chance::Stop),
        1 => (any::<u8>(), 0..4u32).prop_map(|(a, b)| Chance::Stray(a, b)),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Chance::Change(a, b)),
        1 => any::<u8>().prop_map(Chance::Debug),
        1 => (1..2_000u64).prop_map(Chance::Deadline),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(a, b)| Chance::Block(a, b)),
        1 => Just(Chance::Requeue),
    ]
}

fn some_container(name: String) -> impl Strategy<Value = ContainerPlan> {
    let policy =
        prop_oneof![3 => Just(None), 1 => Just(Some(RestartPolicy::OnFailure)), 1 => Just(Some(RestartPolicy::Never))];
    let probes = (any::<[bool; 3]>(), 1..12u32, 1..4u32);
    (policy, probes, any::<[bool; 2]>(), 0..4u8).prop_map(move |(policy, (has, period, failures), hooks, rule)| {
        let mut c = container(&name);
        c.restart_policy = policy;
        let action = if rule == 1 { RestartAction::Restart } else { RestartAction::RestartAllContainers };
        if policy.is_some() && rule > 0 && rule < 3 {
            c.restart_rules = vec![RestartRule { action, operator: ExitCodeOperator::In, values: vec![42] }];
        }
        c.probes.startup = has[0].then(|| probe(period, 1, failures));
        c.probes.liveness = has[1].then(|| probe(period, 1, failures));
        c.probes.readiness = has[2].then(|| probe(period, failures, failures));
        c.lifecycle.post_start = hooks[0].then_some(Handler::Sleep { seconds: 1 });
        c.lifecycle.pre_stop = hooks[1].then_some(Handler::Sleep { seconds: 1 });
        c
    })
}

fn some_pod() -> impl Strategy<Value = SandboxPlan> {
    let policy = prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)];
    let many = |prefix: &'static str, n: std::ops::Range<usize>| {
        n.prop_flat_map(move |n| (0..n).map(|i| some_container(format!("{prefix}{i}"))).collect::<Vec<_>>())
    };
    let deadline = prop_oneof![5 => Just(None), 1 => (1..600u64).prop_map(Some)];
    (policy, many("i", 0..4), many("m", 1..4), any::<u8>(), 0..40u32, deadline).prop_map(
        |(policy, mut init, main, sidecars, grace, deadline)| {
            for (i, c) in init.iter_mut().enumerate() {
                if sidecars & (1 << i) != 0 {
                    c.restart_policy = Some(RestartPolicy::Always);
                } else {
                    c.probes = hpk_api::probe::Probes::default();
                    c.lifecycle = hpk_api::probe::Lifecycle::default();
                }
            }
            let mut plan = pod(policy, init, main);
            plan.termination_grace_period_seconds = grace;
            plan.active_deadline_seconds = deadline;
            plan
        },
    )
}

fn pick<T: Copy>(from: impl IntoIterator<Item = T>, n: u8) -> Option<T> {
    let all: Vec<T> = from.into_iter().collect();
    (!all.is_empty()).then(|| all[usize::from(n) % all.len()])
}

fn play(world: &mut World, chance: Chance) {
    match chance {
        Chance::Pass(ms) => world.pass(f64::from(ms) / 1000.0),
        Chance::Launch(n) => {
            if let Some(i) = pick(world.starting.keys().copied(), n) {
                world.launched(i);
            }
        }
        Chance::LaunchFails(n, kind) => {
            if let Some(i) = pick(world.starting.keys().copied(), n) {
                let name = world.supervisor.container(ContainerIndex(i)).unwrap().name.clone();
                let why = "no".to_owned();
                world.launch_fails(
                    &name,
                    match kind {
                        0 => LaunchFailure::Config(why),
                        1 => LaunchFailure::Create(why),
                        _ => LaunchFailure::Start(why),
                    },
                );
            }
        }
        Chance::Exit(n, code) => {
            if let Some((i, instance)) = pick(world.live.keys().copied(), n) {
                world.exited(
                    i,
                    instance,
                    Exit { cause: ExitCause::Code(code), oom: false, message: String::new(), at: None },
                );
            }
        }
        Chance::Obey(n) => {
            let told = world.live.iter().filter(|(_, p)| p.killed || !p.signals.is_empty()).map(|(k, _)| *k);
            if let Some((i, instance)) = pick(told, n) {
                world.exited(
                    i,
                    instance,
                    Exit { cause: ExitCause::Signal(15), oom: false, message: String::new(), at: None },
                );
            }
        }
        Chance::Probe(n, outcome) => {
            let runs = world.live.iter().flat_map(|((i, _), p)| p.probes.iter().map(|&k| (*i, k)));
            if let Some((i, kind)) = pick(runs, n) {
                let name = world.supervisor.container(ContainerIndex(i)).unwrap().name.clone();
                let text = "x".to_owned();
                world.probe(
                    &name,
                    kind,
                    match outcome {
                        0..3 => ProbeOutcome::Success,
                        3 => ProbeOutcome::Warning(text),
                        4..7 => ProbeOutcome::Failure(text),
                        _ => ProbeOutcome::Error(text),
                    },
                );
            }
        }
        Chance::Hook(n, good) => {
            let runs = world.live.iter().flat_map(|((i, _), p)| p.hooks.iter().map(|&h| (*i, h)));
            if let Some((i, hook)) = pick(runs, n) {
                let name = world.supervisor.container(ContainerIndex(i)).unwrap().name.clone();
                world.hook(&name, hook, if good { Ok(()) } else { Err(HookFailure::default()) });
            }
        }
        Chance::Stop(grace) => world.stop(StopCause::Requested, grace),
        Chance::Stray(n, instance) => {
            let container = ContainerIndex(usize::from(n % 9));
            // An answer that nobody waits for. Where somebody does wait for just this one, it is no stray.
            if !world.starting.contains_key(&container.0) {
                world.event(Event::Launched { container, instance, user: ContainerUser::default() });
                let failure = LaunchFailure::Create(String::new());
                world.event(Event::LaunchFailed { container, instance, failure });
            }
            if !world.live.contains_key(&(container.0, instance)) {
                let exit = Exit { cause: ExitCause::Code(1), oom: false, message: String::new(), at: None };
                world.event(Event::Exited { container, instance, exit });
            }
            let instance = instance + 1_000;
            world.event(Event::HookDone { container, instance, hook: Hook::PreStop, result: Ok(()) });
            let (kind, outcome) = (ProbeKind::Liveness, ProbeOutcome::Failure(String::new()));
            world.event(Event::ProbeDone { container, instance, kind, outcome });
            world.event(Event::Tick);
        }
        Chance::Change(n, image) => {
            let index = ContainerIndex(usize::from(n) % world.supervisor.len());
            let mut plan = world.supervisor.container(index).unwrap().clone();
            if image {
                plan.image.push('x');
            } else {
                plan.resources.limits.insert("cpu".to_owned(), u64::from(n));
            }
            let update = Update { containers: vec![plan], ..Update::default() };
            world.event(Event::Update(Box::new(update)));
        }
        Chance::Deadline(seconds) => {
            let update = Update { active_deadline_seconds: Some(seconds), ..Update::default() };
            world.event(Event::Update(Box::new(update)));
        }
        Chance::Block(n, blocked) => {
            let index = ContainerIndex(usize::from(n) % world.supervisor.len());
            let mut plan = world.supervisor.container(index).unwrap().clone();
            let reason = "CreateContainerConfigError".to_owned();
            plan.blocked = blocked.then(|| Blocked { reason, message: "no key".to_owned() });
            world.event(Event::Update(Box::new(Update { containers: vec![plan], ..Update::default() })));
        }
        Chance::Requeue => *world = world.requeued(),
        Chance::Debug(n) => {
            let ephemeral_containers = vec![container(&format!("e{}", n % 3))];
            let update = Update { ephemeral_containers, ..Update::default() };
            world.event(Event::Update(Box::new(update)));
        }
    }
}

/// Everything that runs obeys, every start succeeds: a stopped pod then ends within its grace period.
fn bring_to_an_end(world: &mut World) {
    world.stop(StopCause::Requested, 0);
    for _ in 0..64 {
        if world.finished.is_some() {
            return;
        }
        world.launch_all();
        world.pass(2.0);
        let killed: Vec<_> = world.live.iter().filter(|(_, p)| p.killed).map(|(k, _)| *k).collect();
        for (i, instance) in killed {
            world.exited(
                i,
                instance,
                Exit { cause: ExitCause::Signal(9), oom: false, message: String::new(), at: None },
            );
        }
    }
    panic!("the pod does not end: {:#?}", world.supervisor.state());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// The invariants are checked after every step by the world itself.
    #[test]
    fn any_life_is_sound_and_ends_when_asked(plan in some_pod(), life in proptest::collection::vec(chance(), 0..120)) {
        let mut world = World::ready(plan);
        for chance in life {
            if world.finished.is_some() {
                break;
            }
            play(&mut world, chance);
        }
        bring_to_an_end(&mut world);
    }

    /// Delays between an end and the next start never shrink while the time from one decision to the next end
    /// (here up to 301 s of waiting for the launch, and the run) stays below the reset.
    #[test]
    fn back_off_is_monotone(runs in proptest::collection::vec(0..290u32, 1..12)) {
        let mut world = World::ready(pod(RestartPolicy::Always, vec![], vec![container("c")]));
        let mut last = 0;
        for run in runs {
            world.launch("c");
            world.pass(f64::from(run));
            let ended = world.millis();
            world.exit("c", 1);
            world.pass(301.0);
            let started = *world.starts("c").last().unwrap();
            let delay = started.checked_sub(ended).expect("it was started again");
            prop_assert!(delay >= last && delay <= 300_000, "{delay} after {last}");
            last = delay;
        }
    }
}
