//! What is done about a gang's members that have no job yet. Pure.
//!
//! A member that comes when the gang has an allocation takes a free place in it; where there is none it gets a job of its own,
//! as Kubernetes' scheduler binds the pods beyond `minCount` one by one. Only where no allocation lives is a new one made,
//! and that for all that wait, when there are enough of them.

/// How far one member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits for the gang: nothing was done for it.
    Held,
    /// Its images and references are being fetched, or will be tried again.
    Preparing,
    /// All is there but its place.
    Ready,
    /// It has a place in an allocation, or a job of its own, that has not ended.
    Placed,
    /// It has ended, or is to end.
    Over,
}

/// One member, as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub uid: String,
    pub state: State,
}

/// The gang as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gang {
    /// How many members must be there. None: not known (yet).
    pub min: Option<u32>,
    /// The oldest first.
    pub members: Vec<Member>,
    /// The living allocation, with its number of free places.
    pub allocation: Option<u32>,
}

/// What is done for a waiting member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits, for this.
    Wait(Why),
    /// It is prepared now.
    Prepare,
    /// It gets a place of the living allocation.
    Join,
    /// It gets a job of its own.
    Alone,
    /// It is one of a new allocation's.
    Begin,
}

/// What a member waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its PodGroup is not there.
    NoGroup,
    /// So many of so many members are there.
    Members(u32, u32),
    /// So many of so many that wait are prepared.
    Prepared(u32, u32),
}

impl Why {
    /// For people.
    #[must_use]
    pub(crate) fn text(self, group: &str) -> String {
        match self {
            Self::NoGroup => format!("{group}: it does not exist"),
            Self::Members(there, min) => format!("{group}: {there} of {min} members are there"),
            Self::Prepared(ready, all) => format!("{group}: {ready} of {all} members are prepared"),
        }
    }
}

/// What to do for each member that waits.
#[must_use]
pub(crate) fn next(gang: &Gang) -> Vec<(String, Step)> {
    let waits = |m: &&Member| matches!(m.state, State::Held | State::Preparing | State::Ready);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let there = count(gang.members.iter().filter(|m| m.state != State::Over).count());
    let waiting: Vec<&Member> = gang.members.iter().filter(waits).collect();
    let all = |step: Step| waiting.iter().map(|m| (m.uid.clone(), step.clone())).collect();
    let Some(min) = gang.min else { return all(Step::Wait(Why::NoGroup)) };
    if there < min {
        return all(Step::Wait(Why::Members(there, min)));
    }
    let ready = count(waiting.iter().filter(|m| m.state == State::Ready).count());
    let begin = ready == count(waiting.len());
    let mut free = gang.allocation.unwrap_or(0);
    let steps = waiting.iter().filter_map(|member| {
        let step = match (member.state, gang.allocation) {
            (State::Held, _) => Step::Prepare,
            (State::Ready, Some(_)) if free > 0 => {
                free -= 1;
                Step::Join
            }
            (State::Ready, Some(_)) => Step::Alone,
            (State::Ready, None) if begin && waiting.len() == 1 && min == 1 => Step::Alone,
            (State::Ready, None) if begin => Step::Begin,
            (State::Ready, None) => Step::Wait(Why::Prepared(ready, count(waiting.len()))),
            // What it waits for is its own to say.
            _ => return None,
        };
        Some((member.uid.clone(), step))
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn gang(min: u32, states: &[State], allocation: Option<u32>) -> Gang {
        let members = states.iter().enumerate().map(|(n, state)| Member { uid: format!("u{n}"), state: *state });
        Gang { min: Some(min), members: members.collect(), allocation }
    }

    fn steps(gang: &Gang) -> Vec<Step> {
        next(gang).into_iter().map(|(_, step)| step).collect()
    }

    #[test]
    fn stories() {
        use State::{Held, Over, Placed, Preparing, Ready};
        use Step::{Alone, Begin, Join, Prepare};
        let wait = |ready, all| Step::Wait(Why::Prepared(ready, all));
        for (name, gang, want) in [
            ("half", gang(4, &[Held, Held], None), vec![Step::Wait(Why::Members(2, 4)); 2]),
            ("all", gang(2, &[Held, Held], None), vec![Prepare, Prepare]),
            ("one is slow", gang(2, &[Ready, Preparing], None), vec![wait(1, 2)]),
            ("all are ready", gang(2, &[Ready, Ready], None), vec![Begin, Begin]),
            ("more than must be", gang(2, &[Ready, Ready, Ready], None), vec![Begin; 3]),
            ("a late one", gang(2, &[Placed, Placed, Held], Some(0)), vec![Prepare]),
            ("and then", gang(2, &[Placed, Placed, Ready], Some(0)), vec![Alone]),
            ("a replacement", gang(3, &[Placed, Over, Placed, Ready], Some(1)), vec![Join]),
            ("two for one place", gang(2, &[Placed, Ready, Ready], Some(1)), vec![Join, Alone]),
            ("its replacement has not come", gang(3, &[Placed, Over, Placed], Some(1)), vec![]),
            ("all went, one came back", gang(2, &[Over, Over, Held], None), vec![Step::Wait(Why::Members(1, 2))]),
            ("a gang of one", gang(1, &[Ready], None), vec![Alone]),
        ] {
            assert_eq!(steps(&gang), want, "{name}");
        }
        let lost = Gang { min: None, ..gang(2, &[Held], None) };
        assert_eq!(steps(&lost), [Step::Wait(Why::NoGroup)]);
    }

    fn state() -> impl Strategy<Value = State> {
        prop_oneof![
            Just(State::Held),
            Just(State::Preparing),
            Just(State::Ready),
            Just(State::Placed),
            Just(State::Over)
        ]
    }

    proptest! {
        /// No member begins before enough are there and all that wait are ready; a place is given once; nobody is forgotten.
        #[test]
        fn all_or_none(
            states in prop::collection::vec(state(), 0..8),
            min in 1_u32..6,
            allocation in prop::option::of(0_u32..4),
        ) {
            let gang = gang(min, &states, allocation);
            let next: BTreeMap<_, _> = next(&gang).into_iter().collect();
            let there = states.iter().filter(|s| **s != State::Over).count();
            let goes = |step: &Step| matches!(step, Step::Begin | Step::Join | Step::Alone | Step::Prepare);
            if there < min as usize {
                prop_assert!(!next.values().any(goes), "{:?}", next);
            }
            let begun = next.values().filter(|s| **s == Step::Begin).count();
            let waiting = states.iter().filter(|s| matches!(s, State::Held | State::Preparing | State::Ready)).count();
            prop_assert!(begun == 0 || begun == waiting, "half a gang: {:?}", next);
            prop_assert!(begun == 0 || allocation.is_none());
            let joined = next.values().filter(|s| **s == Step::Join).count();
            prop_assert!(joined <= allocation.unwrap_or(0) as usize);
            for (n, state) in states.iter().enumerate() {
                let told = next.get(&format!("u{n}"));
                match state {
                    State::Held | State::Ready => prop_assert!(told.is_some(), "nothing is said of u{}", n),
                    State::Placed | State::Over => prop_assert!(told.is_none()),
                    State::Preparing => {}
                }
            }
        }
    }
}
