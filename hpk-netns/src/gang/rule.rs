//! What the agent of a gang does next: which member's step is started on which node, which is ended, and when the
//! allocation is done. Pure.

use hpk_api::gang::{GangFile, Wish};
use std::collections::BTreeMap;

/// A member whose step was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) node: String,
    pub(crate) running: bool,
    /// The strongest wish that was passed on.
    pub(crate) told: Wish,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Begin the step of this member on this node.
    Start { uid: String, node: String },
    /// Never begin the step of this member, and say so.
    Skip { uid: String },
    /// Have it end in order.
    Stop { uid: String },
    /// End it.
    Kill { uid: String },
}

/// What to do now. `slots`: the allocation's places, a node's name for each. None: all is done, and the allocation ends.
pub(crate) fn next(file: &GangFile, steps: &BTreeMap<String, Step>, slots: &[String]) -> Option<Vec<Act>> {
    let mut free: Vec<&String> = slots.iter().collect();
    for step in steps.values().filter(|step| step.running) {
        if let Some(at) = free.iter().position(|node| **node == step.node) {
            free.remove(at);
        }
    }
    let mut free = free.into_iter();
    let mut acts = Vec::new();
    let mut alive = steps.values().any(|step| step.running);
    for member in &file.members {
        let uid = member.uid.clone();
        match steps.get(&member.uid) {
            None if member.wish == Wish::Run => {
                // One that has no place yet gets one when another member ends.
                if let Some(node) = free.next() {
                    acts.push(Act::Start { uid, node: node.clone() });
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

/// The allocation's places out of Slurm's `SLURM_TASKS_PER_NODE` (`2(x3),1`) for these nodes.
pub(crate) fn slots(nodes: &[String], tasks_per_node: &str) -> Option<Vec<String>> {
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
    Some(nodes.iter().zip(counts).flat_map(|(node, count)| std::iter::repeat_n(node.clone(), count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::gang::Member;
    use proptest::prelude::*;

    fn file(members: &[(usize, Wish)]) -> GangFile {
        let members =
            members.iter().map(|(n, wish)| Member { uid: format!("u{n}"), name: format!("ns/p{n}"), wish: *wish });
        GangFile {
            version: 1,
            id: "g".into(),
            generation: 1,
            group: "PodGroup ns/g".into(),
            slots: 2,
            step: vec![],
            members: members.collect(),
            job_id: None,
        }
    }

    fn nodes(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn places() {
        assert_eq!(slots(&nodes(&["a", "b"]), "2,1"), Some(nodes(&["a", "a", "b"])));
        assert_eq!(slots(&nodes(&["a", "b", "c"]), "1(x2),3"), Some(nodes(&["a", "b", "c", "c", "c"])));
        for wrong in ["", "x", "1", "1(x3)", "1(x", "1,1,1"] {
            assert_eq!(slots(&nodes(&["a", "b"]), wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_life() {
        let slots = nodes(&["a", "b"]);
        let start = |uid: &str, node: &str| Act::Start { uid: uid.into(), node: node.into() };
        let mut steps = BTreeMap::new();
        let gang = file(&[(1, Wish::Run), (2, Wish::Run)]);
        assert_eq!(next(&gang, &steps, &slots), Some(vec![start("u1", "a"), start("u2", "b")]));
        for (uid, node) in [("u1", "a"), ("u2", "b")] {
            steps.insert(uid.to_owned(), Step { node: node.into(), running: true, told: Wish::Run });
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
        steps.insert("u3".to_owned(), Step { node: String::new(), running: false, told: Wish::Kill });
        assert_eq!(next(&gang, &steps, &slots), None);
    }

    fn wish() -> impl Strategy<Value = Wish> {
        prop_oneof![3 => Just(Wish::Run), 1 => Just(Wish::Stop), 1 => Just(Wish::Kill)]
    }

    proptest! {
        /// However orders change: no member is started twice, no node has more steps than places, and when every step has
        /// ended and no member is left to start, the allocation ends.
        #[test]
        fn one_step_for_each_member(
            places in prop::collection::vec(0_usize..3, 1..5),
            story in prop::collection::vec((0_usize..6, wish(), any::<bool>()), 0..60),
        ) {
            let slots: Vec<String> = places.iter().map(|n| format!("n{n}")).collect();
            let mut wishes: BTreeMap<usize, Wish> = BTreeMap::new();
            let mut steps: BTreeMap<String, Step> = BTreeMap::new();
            let finish = |wishes: &BTreeMap<usize, Wish>, steps: &mut BTreeMap<String, Step>| {
                let list: Vec<_> = wishes.iter().map(|(n, w)| (*n, *w)).collect();
                let acts = next(&file(&list), steps, &slots);
                for act in acts.iter().flatten() {
                    match act {
                        Act::Start { uid, node } => {
                            let step = Step { node: node.clone(), running: true, told: Wish::Run };
                            prop_assert!(steps.insert(uid.clone(), step).is_none(), "started twice");
                        }
                        Act::Skip { uid } => {
                            let step = Step { node: String::new(), running: false, told: Wish::Kill };
                            prop_assert!(steps.insert(uid.clone(), step).is_none(), "it was begun");
                        }
                        Act::Stop { uid } => steps.get_mut(uid).unwrap().told = Wish::Stop,
                        Act::Kill { uid } => steps.get_mut(uid).unwrap().told = Wish::Kill,
                    }
                }
                for node in &slots {
                    let has = slots.iter().filter(|n| *n == node).count();
                    let runs = steps.values().filter(|s| s.running && s.node == *node).count();
                    prop_assert!(runs <= has, "{} steps on {}", runs, node);
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
