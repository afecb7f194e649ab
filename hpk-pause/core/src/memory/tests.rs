use super::*;

const A: ContainerIndex = ContainerIndex(0);
const B: ContainerIndex = ContainerIndex(1);
const LIMIT: u64 = 64 << 20;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn process(container: ContainerIndex, pid: i32, pages: u64) -> ProcessUse {
    ProcessUse { container, pid, started: 1, pages, gone: false, child_faults: 0 }
}

fn kills(kills: u64) -> MemoryUse {
    MemoryUse { kills, ..MemoryUse::default() }
}

fn rule(notified: bool) -> MemoryRule {
    MemoryRule::new(ms(0), Some(LIMIT), notified, MemoryUse::default())
}

/// With both containers running.
fn look(
    rule: &mut MemoryRule,
    now: Duration,
    word: bool,
    used: MemoryUse,
    processes: &[ProcessUse],
) -> Vec<MemoryFinding> {
    rule.look(now, word, used, processes, &[A, B], None)
}

fn killed(container: ContainerIndex) -> Vec<MemoryFinding> {
    vec![MemoryFinding::Killed(Some(container))]
}

#[test]
fn the_largest_that_is_gone_is_the_victim() {
    let mut rule = rule(true);
    let (shell, small, large) = (process(A, 1, 10), process(A, 2, 20), process(B, 3, 9000));
    assert_eq!(look(&mut rule, ms(0), true, kills(0), &[shell, small, large]), []);
    assert_eq!(look(&mut rule, ms(10), true, kills(1), &[shell]), killed(B));
    assert_eq!(look(&mut rule, ms(20), true, kills(1), &[shell]), [], "each kill is told once");
}

#[test]
fn a_number_that_is_given_again_is_another_process() {
    let mut rule = rule(true);
    let old = process(B, 3, 9000);
    look(&mut rule, ms(0), true, kills(0), &[process(A, 1, 10), old]);
    let new = ProcessUse { started: 2, ..process(A, 3, 9000) };
    assert_eq!(look(&mut rule, ms(10), true, kills(1), &[process(A, 1, 10), new]), killed(B));
}

#[test]
fn a_dying_process_is_waited_for() {
    let mut rule = rule(true);
    let both = [process(A, 1, 10), process(B, 2, 9000)];
    look(&mut rule, ms(0), true, kills(0), &both);
    assert_eq!(look(&mut rule, ms(1), true, kills(1), &both), [], "it is still there");
    assert_eq!(rule.due(), Some(ms(101)));
    let dying = [both[0], ProcessUse { gone: true, ..both[1] }];
    assert_eq!(look(&mut rule, ms(101), false, kills(1), &dying), killed(B));
}

#[test]
fn two_kills_can_have_hit_two_containers_and_small_ones_end_by_themselves() {
    let mut rule = rule(true);
    let all = [process(A, 1, 8000), process(B, 2, 9000), process(B, 3, 5)];
    look(&mut rule, ms(0), true, kills(0), &all);
    let both = [MemoryFinding::Killed(Some(A)), MemoryFinding::Killed(Some(B))];
    assert_eq!(look(&mut rule, ms(1), true, kills(2), &[]), both);
    let all = [process(A, 1, 5), process(B, 2, 9000)];
    look(&mut rule, ms(2), true, kills(2), &all);
    assert_eq!(look(&mut rule, ms(3), true, kills(4), &[]), killed(B));
}

#[test]
fn one_that_nobody_saw_is_known_by_its_parent_or_by_being_alone() {
    let mut rule = rule(false);
    let (a, b) = (process(A, 1, 10), process(B, 2, 10));
    look(&mut rule, ms(0), false, kills(0), &[a, b]);
    let bereft = ProcessUse { child_faults: 50_000, ..b };
    let busy = ProcessUse { child_faults: 900, ..a };
    assert_eq!(look(&mut rule, ms(5000), false, kills(1), &[busy, bereft]), killed(B));
    rule.forget(B);
    let one = rule.look(ms(9000), false, kills(2), &[busy], &[A], None);
    assert_eq!(one, killed(A), "B has ended and can have lost nothing");
    let ended = rule.look(ms(9000), false, kills(3), &[busy], &[A, B], Some(B));
    assert_eq!(ended, killed(B), "A has lost nothing, and B is at its end");
}

#[test]
fn whose_it_was_may_stay_unknown() {
    let mut rule = rule(true);
    let both = [process(A, 1, 10), process(B, 2, 10)];
    look(&mut rule, ms(0), true, kills(0), &both);
    assert_eq!(look(&mut rule, ms(1), true, kills(1), &both), []);
    assert_eq!(look(&mut rule, ms(1500), false, kills(1), &both), []);
    assert_eq!(look(&mut rule, ms(2001), false, kills(1), &both), [MemoryFinding::Killed(None)]);
    assert_eq!(rule.due(), None);
}

#[test]
fn what_a_first_process_died_of_is_explained() {
    let mut rule = rule(true);
    look(&mut rule, ms(0), true, kills(0), &[process(A, 1, 9000), process(B, 2, 10)]);
    assert!(rule.fresh(1));
    rule.explained(A, 1);
    assert!(!rule.fresh(1));
    assert_eq!(look(&mut rule, ms(1), true, kills(1), &[process(B, 2, 10)]), []);
}

#[test]
fn nobody_wakes_without_word_or_without_a_limit() {
    let mut rule = rule(true);
    assert_eq!(rule.due(), None);
    look(&mut rule, ms(1000), true, MemoryUse::default(), &[]);
    assert_eq!(rule.due(), Some(ms(1200)), "the kernel tells before it kills");
    look(&mut rule, ms(1200), false, MemoryUse::default(), &[]);
    assert_eq!(rule.due(), None);
    assert_eq!(MemoryRule::new(ms(0), None, false, MemoryUse::default()).due(), None);
}

#[test]
fn where_the_kernel_gives_no_word_rest_grows_away_from_the_limit() {
    let mut rule = rule(false);
    let used = |used| MemoryUse { used, ..MemoryUse::default() };
    let mut now = ms(0);
    let mut pauses = Vec::new();
    for bytes in [0, 0, 0, 0, 0, LIMIT / 2, LIMIT / 2, LIMIT - 1, LIMIT - 1, LIMIT / 2] {
        now = rule.due().expect("it looks by itself");
        look(&mut rule, now, false, used(bytes), &[]);
        pauses.push((rule.due().expect("it looks by itself") - now).as_millis());
    }
    assert_eq!(pauses, [10_000, 20_000, 40_000, 60_000, 60_000, 5_000, 10_000, 500, 500, 5_000]);
    assert!(now > ms(100_000));
}

#[test]
fn thrashing_is_ten_seconds_of_reaching_the_limit_and_reading_again() {
    for (faults, hits, expected) in [(60, 5, 1), (60, 0, 0), (40, 5, 0)] {
        let mut rule = rule(true);
        let mut findings = Vec::new();
        for second in 0..40 {
            let used =
                MemoryUse { hits: second * hits, major_faults: second * faults, used: LIMIT, ..MemoryUse::default() };
            findings.extend(look(&mut rule, ms(second * 1000), false, used, &[]));
        }
        assert_eq!(findings.len(), expected, "{faults} {hits}: {findings:?}");
        if expected > 0 {
            assert_eq!(findings, [MemoryFinding::Thrashing { faults: 60 }], "once in ten minutes");
        }
    }
}

#[test]
fn the_words_name_the_limit_and_the_remedy() {
    let killed = MemoryFinding::Killed(Some(A));
    for (finding, name, single, word) in [
        (killed, Some("main"), false, "container main"),
        (killed, Some("main"), false, "OOMKilled"),
        (killed, Some("main"), true, "goes on"),
        (MemoryFinding::Killed(None), None, false, "cannot be told"),
        (MemoryFinding::Thrashing { faults: 7 }, None, false, "7 pages a second"),
    ] {
        let (_, message) = finding.words(name, "64Mi", single);
        for word in [word, "limit of 64Mi", "resources.limits.memory"] {
            assert!(message.contains(word), "{message}");
        }
    }
}

#[test]
fn a_rest_between_two_hits_is_no_thrashing() {
    let mut rule = rule(true);
    for second in 0..60 {
        let hits = second / 5;
        let used = MemoryUse { hits, major_faults: second * 1000, used: LIMIT, ..MemoryUse::default() };
        assert_eq!(look(&mut rule, ms(second * 1000), false, used, &[]), [], "{second}");
    }
}
