//! What the agent of a gang does next: which member's step is started on which node, which is ended, and when the
//! allocation is done. Pure.

use hpk_api::gang::{GangFile, Wish};
use std::collections::BTreeMap;

/// A place for one member's step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The component of the job, from 0.
    pub(crate) component: u32,
    pub(crate) node: String,
}

/// A member whose step was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) slot: Slot,
    pub(crate) running: bool,
    /// The strongest wish that was passed on.
    pub(crate) told: Wish,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Begin the step of this member in this place.
    Start { uid: String, slot: Slot },
    /// Never begin the step of this member, and say so.
    Skip { uid: String },
    /// Have it end in order.
    Stop { uid: String },
    /// End it.
    Kill { uid: String },
}

/// What to do now. `slots`: the allocation's places. None: all is done, and the allocation ends.
pub(crate) fn next(file: &GangFile, steps: &BTreeMap<String, Step>, slots: &[Slot]) -> Option<Vec<Act>> {
    let mut free: Vec<&Slot> = slots.iter().collect();
    for step in steps.values().filter(|step| step.running) {
        if let Some(at) = free.iter().position(|slot| **slot == step.slot) {
            free.remove(at);
        }
    }
    let mut acts = Vec::new();
    let mut alive = steps.values().any(|step| step.running);
    for member in &file.members {
        let uid = member.uid.clone();
        match steps.get(&member.uid) {
            None if member.wish == Wish::Run => {
                // One that has no place yet gets one when another member ends.
                if let Some(at) = free.iter().position(|slot| slot.component == member.component) {
                    acts.push(Act::Start { uid, slot: free.remove(at).clone() });
                    alive = true;
                }
            }
            None => acts.push(Act::Skip { uid }),
            Some(step) if step.running && member.wish > step.told => match member.wish {
                Wish::Stop => acts.push(Act::Stop { uid }),
                Wish::Kill => acts.push(Act::Kill { uid }),
                Wish::Run => {}
            },
            _ => {}
        }
    }
    (alive || !acts.is_empty()).then_some(acts)
}

/// The places of a component out of Slurm's `SLURM_TASKS_PER_NODE` (`2(x3),1`) for its nodes.
pub(crate) fn slots(component: u32, nodes: &[String], tasks_per_node: &str) -> Option<Vec<Slot>> {
    let mut counts = Vec::new();
    for word in tasks_per_node.split(',') {
        let (count, times) = match word.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (word, 1_usize),
        };
        let count: usize = count.trim().parse().ok()?;
        // One too many is enough to be refused below.
        counts.extend(std::iter::repeat_n(count, times.min(nodes.len() + 1)));
    }
    if counts.len() != nodes.len() {
        return None;
    }
    let slot = |node: &String| Slot { component, node: node.clone() };
    Some(nodes.iter().zip(counts).flat_map(|(node, count)| std::iter::repeat_n(slot(node), count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::gang::Member;
    use proptest::prelude::*;

    /// Members of an even number are in component 0, the others in the last one of `components`.
    fn file_of(members: &[(usize, Wish)], components: u32) -> GangFile {
        let component = |n: usize| if n.is_multiple_of(2) { 0 } else { components - 1 };
        let members = members.iter().map(|(n, wish)| Member {
            uid: format!("u{n}"),
            name: format!("ns/p{n}"),
            wish: *wish,
            component: component(*n),
        });
        GangFile {
            version: 1,
            id: "g".into(),
            generation: 1,
            group: "PodGroup ns/g".into(),
            slots: 2,
            step: vec![],
            components: vec![],
            members: members.collect(),
            job_id: None,
        }
    }

    fn file(members: &[(usize, Wish)]) -> GangFile {
        file_of(members, 1)
    }

    fn places(component: u32, nodes: &[&str]) -> Vec<Slot> {
        nodes.iter().map(|node| Slot { component, node: (*node).to_owned() }).collect()
    }

    fn nodes(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places_of_a_component() {
        assert_eq!(slots(0, &nodes(&["a", "b"]), "2,1"), Some(places(0, &["a", "a", "b"])));
        assert_eq!(slots(1, &nodes(&["a", "b", "c"]), "1(x2),3"), Some(places(1, &["a", "b", "c", "c", "c"])));
        for wrong in ["", "x", "1", "1(x3)", "1(x", "1,1,1"] {
            assert_eq!(slots(0, &nodes(&["a", "b"]), wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_life() {
        let slots = places(0, &["a", "b"]);
        let slot = |node: &str| Slot { component: 0, node: node.into() };
        let start = |uid: &str, node: &str| Act::Start { uid: uid.into(), slot: slot(node) };
        let mut steps = BTreeMap::new();
        let gang = file(&[(1, Wish::Run), (2, Wish::Run)]);
        assert_eq!(next(&gang, &steps, &slots), Some(vec![start("u1", "a"), start("u2", "b")]));
        for (uid, node) in [("u1", "a"), ("u2", "b")] {
            steps.insert(uid.to_owned(), Step { slot: slot(node), running: true, told: Wish::Run });
        }
        assert_eq!(next(&gang, &steps, &slots), Some(vec![]));
        let gang = file(&[(1, Wish::Stop), (2, Wish::Run), (3, Wish::Run)]);
        assert_eq!(
            next(&gang, &steps, &slots),
            Some(vec![Act::Stop { uid: "u1".into() }]),
            "no place for the third yet"
        );
        steps.get_mut("u1").unwrap().told = Wish::Stop;
        assert_eq!(next(&gang, &steps, &slots), Some(vec![]), "told once");
        steps.get_mut("u1").unwrap().running = false;
        assert_eq!(next(&gang, &steps, &slots), Some(vec![start("u3", "a")]));
        steps.get_mut("u2").unwrap().running = false;
        let gang = file(&[(1, Wish::Kill), (2, Wish::Run), (3, Wish::Kill)]);
        let skip = Act::Skip { uid: "u3".into() };
        assert_eq!(next(&gang, &steps, &slots), Some(vec![skip]), "nobody waits for a step that never began");
        steps.insert("u3".to_owned(), Step { slot: slot(""), running: false, told: Wish::Kill });
        assert_eq!(next(&gang, &steps, &slots), None);
    }

    #[test]
    fn a_member_gets_a_place_of_its_own_component() {
        let slots = [places(0, &["a"]), places(1, &["a", "b"])].concat();
        let gang = file_of(&[(1, Wish::Run), (2, Wish::Run), (4, Wish::Run), (3, Wish::Run)], 2);
        let start = |uid: &str, component, node: &str| Act::Start {
            uid: uid.into(),
            slot: Slot { component, node: node.into() },
        };
        // The second member of component 0 waits, though a place of component 1 would be there for it.
        let want = vec![start("u1", 1, "a"), start("u2", 0, "a"), start("u3", 1, "b")];
        assert_eq!(next(&gang, &BTreeMap::new(), &slots), Some(want));
    }

    fn wish() -> impl Strategy<Value = Wish> {
        prop_oneof![3 => Just(Wish::Run), 1 => Just(Wish::Stop), 1 => Just(Wish::Kill)]
    }

    proptest! {
        /// However orders change: no member is started twice, no node has more steps than places, and when every step has
        /// ended and no member is left to start, the allocation ends.
        #[test]
        fn one_step_for_each_member(
            counts in prop::collection::vec((0_u32..2, 0_usize..3), 0..5),
            story in prop::collection::vec((0_usize..6, wish(), any::<bool>()), 0..60),
        ) {
            // Each component has a place, as each has members.
            let counts = counts.into_iter().chain([(0, 0), (1, 0)]);
            let slots: Vec<Slot> = counts.map(|(component, n)| Slot { component, node: format!("n{n}") }).collect();
            let mut wishes: BTreeMap<usize, Wish> = BTreeMap::new();
            let mut steps: BTreeMap<String, Step> = BTreeMap::new();
            let finish = |wishes: &BTreeMap<usize, Wish>, steps: &mut BTreeMap<String, Step>| {
                let list: Vec<_> = wishes.iter().map(|(n, w)| (*n, *w)).collect();
                let acts = next(&file_of(&list, 2), steps, &slots);
                for act in acts.iter().flatten() {
                    match act {
                        Act::Start { uid, slot } => {
                            let step = Step { slot: slot.clone(), running: true, told: Wish::Run };
                            prop_assert!(steps.insert(uid.clone(), step).is_none(), "started twice");
                        }
                        Act::Skip { uid } => {
                            let slot = Slot { component: 0, node: String::new() };
                            let step = Step { slot, running: false, told: Wish::Kill };
                            prop_assert!(steps.insert(uid.clone(), step).is_none(), "it was begun");
                        }
                        Act::Stop { uid } => steps.get_mut(uid).unwrap().told = Wish::Stop,
                        Act::Kill { uid } => steps.get_mut(uid).unwrap().told = Wish::Kill,
                    }
                }
                for slot in &slots {
                    let has = slots.iter().filter(|n| *n == slot).count();
                    let runs = steps.values().filter(|s| s.running && s.slot == *slot).count();
                    prop_assert!(runs <= has, "{} steps in {:?}", runs, slot);
                }
                Ok(acts.is_none())
            };
            for (n, wish, ends) in story {
                let old = wishes.get(&n).copied().unwrap_or(Wish::Run);
                wishes.insert(n, old.max(wish));
                if ends && let Some(step) = steps.get_mut(&format!("u{n}")) {
                    step.running = false;
                }
                finish(&wishes, &mut steps)?;
            }
            for _ in 0..12 {
                for step in steps.values_mut() {
                    step.running = false;
                }
                if finish(&wishes, &mut steps)? {
                    return Ok(());
                }
            }
            prop_assert!(false, "the allocation never ends");
        }
    }
}
