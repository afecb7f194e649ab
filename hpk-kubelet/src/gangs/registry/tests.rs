use super::*;
use crate::gangs::claim::{Claim, Policy};
use crate::gangs::shape::{Request, ShapeError};
use hpk_api::gang::{Component, Place};
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeSet, HashMap};

/// The world around the registry: a controller with its pods, a file system, and a Slurm that says no at times.
struct Site {
    registry: Registry,
    start: Instant,
    seconds: u64,
    min: u32,
    pods: BTreeMap<String, Seen>,
    /// What the controller waits for, by ticket.
    asked: HashMap<Ticket, (String, Asked)>,
    next: Ticket,
    /// Members by allocation, as they are on disk.
    disk: BTreeMap<String, GangFile>,
    /// Jobs that Slurm has made, with the members that their file had then.
    made: Vec<(String, BTreeSet<String>)>,
    alone: Vec<String>,
    /// Runs that were answered, by pod.
    runs: BTreeMap<String, String>,
    woken: BTreeSet<String>,
    /// Answers of sbatch to come.
    refuse: u32,
    lose: u32,
    drop: u32,
    /// Gangs to come whose members do not fit together.
    unfit: u32,
    /// Why submissions failed, by pod.
    failed: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Arrived,
    Ready,
    Submit,
}

struct Around<'a> {
    pods: &'a BTreeMap<String, Seen>,
    min: u32,
    now: Instant,
}

impl World for Around<'_> {
    fn policy(&self, _: &str, _: &str) -> Option<Policy> {
        Some(Policy { min_count: Some(self.min), all: false })
    }
    fn fits(&self, pod: &Pod, component: &Component) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        component.place.as_ref().is_none_or(|place| place.cpus >= cpus(uid))
    }
    fn pod(&self, uid: &str) -> Seen {
        self.pods.get(uid).copied().unwrap_or(Seen::Nothing)
    }
    fn now(&self) -> Instant {
        self.now
    }
}

/// Pods whose name begins with `L` are large.
fn cpus(uid: &str) -> u64 {
    if uid.starts_with('L') { 8 } else { 1 }
}

/// The large ones are a component, and the others are one.
fn places(uids: &[String]) -> Request {
    let mut request = Request { arguments: vec!["--x".to_owned()], ..Request::default() };
    let mut sizes: Vec<u64> = uids.iter().map(|uid| cpus(uid)).collect();
    request.of_members = sizes.iter().map(|size| u32::from(*size == 1 && sizes.contains(&8))).collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    for group in sizes.chunk_by(|a, b| a == b) {
        let place = Some(Place { cpus: group[0], ..Place::default() });
        request.components.push(Component { slots: u32::try_from(group.len()).unwrap(), step: vec![], place });
    }
    request
}

impl Site {
    fn new(min: u32) -> Self {
        Self {
            registry: Registry::default(),
            start: Instant::now(),
            seconds: 0,
            min,
            pods: BTreeMap::new(),
            asked: HashMap::new(),
            next: 0,
            disk: BTreeMap::new(),
            made: Vec::new(),
            alone: Vec::new(),
            runs: BTreeMap::new(),
            woken: BTreeSet::new(),
            refuse: 0,
            lose: 0,
            drop: 0,
            unfit: 0,
            failed: Vec::new(),
        }
    }

    fn hear(&mut self, heard: Heard) {
        let mut queue = vec![heard];
        while let Some(heard) = queue.pop() {
            let now = self.start + Duration::from_secs(self.seconds);
            let around = Around { pods: &self.pods, min: self.min, now };
            for effect in self.registry.on(heard, &around) {
                queue.extend(self.perform(effect));
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Heard> {
        match effect {
            Effect::Gate { ticket, gate } => {
                let (uid, asked) = self.asked.remove(&ticket).expect("asked");
                match (gate, asked) {
                    (Gate::Open, Asked::Arrived) => Some(self.ask(&uid, Asked::Ready)),
                    (Gate::Open, Asked::Ready) => Some(self.ask(&uid, Asked::Submit)),
                    (Gate::Wait(_), _) => None,
                    (Gate::Open, Asked::Submit) => panic!("an answer to a submission is no gate"),
                }
            }
            Effect::Alone { ticket } => {
                let (uid, _) = self.asked.remove(&ticket).expect("asked");
                self.alone.push(uid);
                None
            }
            Effect::Made { ticket, run } => {
                let (uid, _) = self.asked.remove(&ticket).expect("asked");
                assert!(self.runs.insert(uid, run).is_none(), "a second run");
                None
            }
            Effect::Failed { ticket, sure, why } => {
                let (uid, _) = self.asked.remove(&ticket).expect("asked");
                self.failed.push((uid.clone(), why));
                // The pod's own search finds its job, or that there is none.
                let found = self.made.iter().position(|(_, members)| members.contains(&uid));
                if let Some(job) = found.filter(|_| !sure) {
                    self.runs.insert(uid, "found".to_owned());
                    return Some(Heard::Found { id: self.made[job].0.clone(), job: job.to_string() });
                }
                Some(self.ask(&uid, Asked::Arrived))
            }
            Effect::Wake { uid } => {
                self.woken.insert(uid);
                None
            }
            Effect::Shape { id, members, .. } => {
                if self.unfit > 0 {
                    self.unfit -= 1;
                    return Some(Heard::Shaped { id, result: Err(ShapeError::Flag("of unlike size".to_owned())) });
                }
                let uids: Vec<String> =
                    members.iter().map(|pod| pod.metadata.uid.clone().unwrap_or_default()).collect();
                Some(Heard::Shaped { id, result: Ok(places(&uids)) })
            }
            Effect::Write(file) => {
                let (id, generation) = (file.id.clone(), file.generation);
                self.disk.insert(id.clone(), file);
                Some(Heard::Written { id, generation, ok: true })
            }
            Effect::Sbatch { id, .. } => {
                let file = self.disk.get(&id).expect("sbatch before the file is on disk");
                let result = if self.refuse > 0 {
                    self.refuse -= 1;
                    Err((true, "no".to_owned()))
                } else if self.drop > 0 {
                    self.drop -= 1;
                    Err((false, "no answer, and no job".to_owned()))
                } else {
                    let job = self.made.len().to_string();
                    self.made.push((id.clone(), file.members.iter().map(|m| m.uid.clone()).collect()));
                    if self.lose > 0 {
                        self.lose -= 1;
                        Err((false, "no answer".to_owned()))
                    } else {
                        Ok(job)
                    }
                };
                Some(Heard::Submitted { id, result })
            }
            Effect::Remove { id } => {
                self.disk.remove(&id);
                None
            }
            Effect::Nudge { .. } | Effect::Cancel { .. } => None,
        }
    }

    fn ask(&mut self, uid: &str, asked: Asked) -> Heard {
        self.next += 1;
        let ticket = self.next;
        self.asked.insert(ticket, (uid.to_owned(), asked));
        let uid = uid.to_owned();
        match asked {
            Asked::Arrived => {
                let claim = Claim {
                    key: Key { namespace: "ns".into(), kind: "PodGroup", name: "g".into() },
                    size: Size::OfPodGroup,
                };
                let metadata = json!({"namespace": "ns", "name": uid, "uid": uid});
                let pod = serde_json::from_value(json!({"metadata": metadata})).expect("pod");
                Heard::Arrived { ticket, claim, pod: Arc::new(pod) }
            }
            Asked::Ready => Heard::Ready { ticket, uid },
            Asked::Submit => Heard::Submit { ticket, uid },
        }
    }

    fn come(&mut self, uid: &str) {
        self.pods.insert(uid.to_owned(), Seen::Alive);
        let heard = self.ask(uid, Asked::Arrived);
        self.hear(heard);
        self.settle();
    }

    /// Pods that were woken are prepared anew.
    fn settle(&mut self) {
        for _ in 0..50 {
            let Some(uid) = self.woken.pop_first() else { return };
            let at_work = self.asked.values().any(|(other, _)| *other == uid);
            if !at_work && self.pods.contains_key(&uid) && !self.runs.contains_key(&uid) && !self.alone.contains(&uid) {
                let heard = self.ask(&uid, Asked::Arrived);
                self.hear(heard);
            }
        }
        panic!("pods wake each other for ever");
    }

    fn see(&mut self, uid: &str, seen: Seen) {
        if seen == Seen::Nothing {
            self.pods.remove(uid);
        } else if let Some(pod) = self.pods.get_mut(uid) {
            *pod = seen;
        }
        self.hear(Heard::Look);
        self.settle();
    }
}

#[test]
fn all_begin_as_one_job() {
    let mut site = Site::new(3);
    site.come("a");
    site.come("b");
    assert!(site.made.is_empty() && site.alone.is_empty());
    site.come("c");
    assert_eq!(site.made.len(), 1);
    let members: BTreeSet<String> = ["a", "b", "c"].map(str::to_owned).into();
    assert_eq!(site.made[0].1, members);
    let runs: BTreeSet<&str> = site.runs.values().map(String::as_str).collect();
    assert_eq!(runs, ["0/0", "0/1", "0/2"].into());
}

#[test]
fn a_replacement_takes_a_free_place_and_one_more_is_alone() {
    let mut site = Site::new(2);
    site.come("a");
    site.come("b");
    site.come("c");
    assert_eq!((site.made.len(), site.alone.as_slice()), (1, &["c".to_owned()][..]));
    site.see("a", Seen::Nothing);
    site.come("d");
    assert_eq!(site.runs["d"], "0/2");
    assert_eq!(site.disk.values().next().unwrap().members.len(), 3);
}

#[test]
fn members_of_unlike_size_have_places_of_their_own_kind() {
    let mut site = Site::new(3);
    site.come("La");
    site.come("b");
    site.come("c");
    assert_eq!(site.made.len(), 1);
    let component = |site: &Site, uid: &str| {
        let file = site.disk.values().next().unwrap();
        file.members.iter().find(|member| member.uid == uid).map(|member| member.component)
    };
    assert_eq!(["La", "b", "c"].map(|uid| component(&site, uid)), [Some(0), Some(1), Some(1)]);
    // A large one has no room in the place of a small one.
    site.see("b", Seen::Nothing);
    site.come("Ld");
    assert_eq!(site.alone, ["Ld"]);
    // Of two places that are free a small one takes the small one.
    site.min = 1;
    site.see("La", Seen::Nothing);
    site.come("e");
    assert_eq!(component(&site, "e"), Some(1));
    site.come("f");
    assert_eq!(component(&site, "f"), Some(0), "the large place is better than none");
}

#[test]
fn a_refused_heterogeneous_job_is_told_as_such() {
    for (second, said) in [("b", true), ("Lb", false)] {
        let mut site = Site::new(2);
        site.refuse = 1;
        site.come("La");
        site.come(second);
        let (_, why) = site.failed.first().expect("a refusal");
        assert!(why.starts_with("no") && why.contains("heterogeneous job of 2 components") == said, "{why}");
    }
}

#[test]
fn when_all_are_gone_the_next_are_a_gang_of_their_own() {
    let mut site = Site::new(2);
    site.come("a");
    site.come("b");
    let id = site.made[0].0.clone();
    site.see("a", Seen::Over);
    site.see("b", Seen::Over);
    site.hear(Heard::Over { id });
    site.come("c");
    assert_eq!(site.made.len(), 1, "one of two waits");
    site.come("d");
    assert_eq!(site.made.len(), 2);
    assert!(site.made[1].1.contains("c") && site.made[1].1.contains("d"));
    site.see("a", Seen::Nothing);
    site.see("b", Seen::Nothing);
    assert_eq!(site.disk.len(), 1, "the first one's folder is not needed any more");
}

#[test]
fn a_refusal_is_tried_again_by_all() {
    let mut site = Site::new(2);
    site.refuse = 1;
    site.come("a");
    site.come("b");
    site.settle();
    assert_eq!(site.made.len(), 1);
    assert_eq!(site.runs.len(), 2);
}

#[test]
fn each_member_is_told_what_does_not_fit() {
    let mut site = Site::new(2);
    site.unfit = 1;
    site.come("a");
    site.come("b");
    let told: BTreeSet<(&str, &str)> = site.failed.iter().map(|(uid, why)| (uid.as_str(), why.as_str())).collect();
    let why = ShapeError::Flag("of unlike size".to_owned()).to_string();
    assert_eq!(told, [("a", why.as_str()), ("b", why.as_str())].into());
    assert_eq!(site.runs.len(), 2, "they are tried again");
}

#[test]
fn a_member_that_does_not_come_holds_the_others_for_a_while_only() {
    let mut site = Site::new(2);
    site.come("a");
    // It is ready, and is lost before its sbatch.
    site.pods.insert("b".into(), Seen::Alive);
    let heard = site.ask("b", Asked::Arrived);
    site.hear(heard);
    let heard = site.ask("a", Asked::Arrived);
    site.hear(heard);
    assert!(site.made.is_empty() && site.registry.due().is_some(), "one of two has come to its sbatch");
    site.woken.clear();
    site.pods.remove("b");
    site.seconds += 31;
    site.hear(Heard::Look);
    site.settle();
    assert!(site.made.is_empty() && site.registry.due().is_none());
    site.come("c");
    let members: BTreeSet<String> = ["a", "c"].map(str::to_owned).into();
    assert_eq!(site.made.iter().map(|(_, members)| members.clone()).collect::<Vec<_>>(), [members]);
}

#[test]
fn a_member_ends_alone_and_the_last_one_ends_the_job() {
    let mut site = Site::new(2);
    site.come("a");
    site.come("b");
    let around = Around { pods: &site.pods.clone(), min: 2, now: site.start };
    let end =
        |registry: &mut Registry, run: &str| registry.on(Heard::End { run: run.to_owned(), wish: Wish::Kill }, &around);
    let first = end(&mut site.registry, "0/0");
    assert!(!first.iter().any(|e| matches!(e, Effect::Cancel { .. })), "{first:?}");
    let last = end(&mut site.registry, "0/1");
    assert!(last.contains(&Effect::Cancel { job: "0".into() }), "{last:?}");
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Come(u8),
    Go(u8),
    Finish(u8),
    Refuse,
    Lose,
    Drop,
    Time,
}

/// Every third pod is large.
fn name(n: u8) -> String {
    if n.is_multiple_of(3) { format!("L{n}") } else { format!("u{n}") }
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0_u8..12).prop_map(Happening::Come),
        1 => (0_u8..12).prop_map(Happening::Go),
        1 => (0_u8..12).prop_map(Happening::Finish),
        1 => Just(Happening::Refuse),
        1 => Just(Happening::Lose),
        1 => Just(Happening::Drop),
        1 => Just(Happening::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever comes and goes, and whatever sbatch says: no pod has a place in two jobs, or one beside a job of its own;
    /// no job begins with less than minCount members there; and no component has more living members than places, or one that
    /// is too large for them.
    #[test]
    fn a_pod_has_one_place(min in 1_u32..5, story in prop::collection::vec(happening(), 0..40)) {
        let mut site = Site::new(min);
        for happening in story {
            let before = site.made.len();
            match happening {
                Happening::Come(n) => {
                    let uid = name(n);
                    if !site.pods.contains_key(&uid) && !site.runs.contains_key(&uid) && !site.alone.contains(&uid) {
                        site.come(&uid);
                    }
                }
                Happening::Go(n) => site.see(&name(n), Seen::Nothing),
                Happening::Finish(n) => site.see(&name(n), Seen::Over),
                Happening::Refuse => site.refuse = 1,
                Happening::Lose => site.lose = 1,
                Happening::Drop => site.drop = 1,
                Happening::Time => {
                    site.seconds += 31;
                    site.hear(Heard::Look);
                    site.settle();
                }
            }
            let there = site.pods.values().filter(|seen| **seen == Seen::Alive).count();
            prop_assert!(site.made.len() == before || there >= min as usize, "{} of {}", there, min);
            let mut placed: Vec<&String> = site.made.iter().flat_map(|(_, members)| members).collect();
            placed.extend(&site.alone);
            let number = placed.len();
            placed.sort();
            placed.dedup();
            prop_assert_eq!(placed.len(), number, "a pod has two places: {:?} {:?}", site.made, site.alone);
            for file in site.disk.values() {
                for (part, component) in file.components.iter().zip(0..) {
                    let own = file.members.iter().filter(|m| m.component == component && m.wish == Wish::Run);
                    let own: Vec<_> = own.filter(|member| site.pods.get(&member.uid) == Some(&Seen::Alive)).collect();
                    let place = part.place.as_ref().map_or(0, |place| place.cpus);
                    prop_assert!(own.len() <= part.slots as usize, "{:?}", file);
                    prop_assert!(own.iter().all(|member| cpus(&member.uid) <= place), "{:?}", file);
                }
            }
        }
    }
}
