//! Which members of a gang have equal places: a plain job where all are alike, else the components of a heterogeneous one. Pure.
//!
//! Places are equal within a component, each as large as its largest member. Members share one as long as not more than a third
//! of its CPUs, and not more than a third of its memory, is idle by that. Devices and flags of Slurm are equal within a
//! component.

use std::collections::BTreeMap;

/// What a member asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    /// Where and when its job is to run.
    pub flags: Vec<String>,
    /// By Slurm's name of them.
    pub devices: BTreeMap<String, u64>,
    /// At least 1.
    pub cpus: u64,
    pub memory_mib: u64,
}

/// Equal places, one for each member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of one place.
    pub cpus: u64,
    /// Of one place.
    pub memory_mib: u64,
    /// Numbers of the members.
    pub members: Vec<usize>,
    /// What the members ask for, added up.
    sum: (u64, u64),
}

impl Part {
    fn with(&self, shape: &Shape, members: &[usize]) -> Self {
        let count = members.len() as u64;
        Self {
            cpus: self.cpus.max(shape.cpus),
            memory_mib: self.memory_mib.max(shape.memory_mib),
            members: [&self.members, members].concat(),
            sum: (
                self.sum.0.saturating_add(shape.cpus.saturating_mul(count)),
                self.sum.1.saturating_add(shape.memory_mib.saturating_mul(count)),
            ),
        }
    }

    /// Not more than a third is idle.
    fn is_near(&self) -> bool {
        let near = |place: u64, sum: u64| {
            place.saturating_mul(self.members.len() as u64).saturating_mul(2) <= sum.saturating_mul(3)
        };
        near(self.cpus, self.sum.0) && near(self.memory_mib, self.sum.1)
    }
}

/// Flags and devices, which are equal within a part.
type Kind<'a> = (&'a [String], &'a BTreeMap<String, u64>);

/// The parts of a gang. Each member is in one of them; members of one shape are in one part.
///
/// The choosiest come first: Slurm plans components in this order and gives each one nodes of its own where it can, so one that
/// takes any node would take the only one that another can have.
#[must_use]
pub(crate) fn split(shapes: &[Shape]) -> Vec<Part> {
    // Members by shape, and shapes by what must be equal.
    let mut kinds: BTreeMap<Kind<'_>, BTreeMap<&Shape, Vec<usize>>> = BTreeMap::new();
    for (number, shape) in shapes.iter().enumerate() {
        let kind = kinds.entry((&shape.flags, &shape.devices)).or_default();
        kind.entry(shape).or_default().push(number);
    }
    let choosy = |(flags, devices): &Kind<'_>| (!devices.is_empty(), flags.len());
    let of_kinds =
        kinds.iter().flat_map(|(kind, units)| of_kind(units).into_iter().map(move |part| (choosy(kind), part)));
    let mut parts: Vec<_> = of_kinds.collect();
    parts.sort_by_key(|(choosy, part)| std::cmp::Reverse((*choosy, part.cpus, part.memory_mib)));
    parts.into_iter().map(|(_, part)| part).collect()
}

/// All in one where that is near, else as many of the next smaller ones as are near.
fn of_kind(units: &BTreeMap<&Shape, Vec<usize>>) -> Vec<Part> {
    let whole = units.iter().fold(Part::default(), |part, (shape, members)| part.with(shape, members));
    if whole.is_near() {
        return vec![whole];
    }
    let mut parts: Vec<Part> = Vec::new();
    for (shape, members) in units.iter().rev() {
        match parts.last_mut().map(|last| (last.with(shape, members), last)) {
            Some((more, last)) if more.is_near() => *last = more,
            _ => parts.push(Part::default().with(shape, members)),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(cpus: u64, memory_mib: u64) -> Shape {
        Shape { cpus, memory_mib, ..Shape::default() }
    }

    fn places(shapes: &[Shape]) -> Vec<(u64, u64, usize)> {
        split(shapes).iter().map(|p| (p.cpus, p.memory_mib, p.members.len())).collect()
    }

    #[test]
    fn equal_and_near_ones_are_one_job_and_others_are_components() {
        let (small, large) = (shape(1, 64), shape(8, 512));
        for (shapes, want) in [
            (vec![], vec![]),
            (vec![small.clone(); 4], vec![(1, 64, 4)]),
            (vec![shape(2, 1000), shape(3, 1136)], vec![(3, 1136, 2)]),
            (vec![small.clone(), large.clone(), small.clone(), small.clone()], vec![(8, 512, 1), (1, 64, 3)]),
            // Of the CPUs a third is idle, of the memory two thirds.
            (vec![shape(2, 64), shape(2, 512), shape(1, 64)], vec![(2, 512, 1), (2, 64, 2)]),
            (vec![shape(9, 1), shape(1, 1), shape(8, 1), shape(1, 1)], vec![(9, 1, 2), (1, 1, 2)]),
            (vec![large.clone(), shape(4, 512), small.clone()], vec![(8, 512, 2), (1, 64, 1)]),
        ] {
            assert_eq!(places(&shapes), want, "{shapes:?}");
        }
    }

    #[test]
    fn devices_and_flags_are_equal_within_a_component() {
        let plain = shape(1, 64);
        let gpu = Shape { devices: [("gpu".to_owned(), 1)].into(), ..plain.clone() };
        let flag = Shape { flags: vec!["--partition=x".to_owned()], ..plain.clone() };
        for other in [gpu, flag] {
            let parts = split(&[plain.clone(), other.clone(), plain.clone(), other]);
            let members: Vec<Vec<usize>> = parts.into_iter().map(|part| part.members).collect();
            assert_eq!(members, [vec![1, 3], vec![0, 2]], "the choosiest first");
        }
    }

    fn some_shape() -> impl Strategy<Value = Shape> {
        (1_u64..20, 1_u64..2000, 0_u64..3, 0_usize..2).prop_map(|(cpus, memory_mib, gpus, flags)| Shape {
            flags: vec!["--qos=x".to_owned(); flags],
            devices: if gpus > 0 { [("gpu".to_owned(), gpus)].into() } else { BTreeMap::new() },
            cpus,
            memory_mib,
        })
    }

    proptest! {
        /// Whoever the members are: each has one place, which is large enough and of its kind; members of one shape are in one
        /// part; no part wastes more than a third; and two parts are made only of what is not near as a whole.
        #[test]
        fn everybody_has_a_place(shapes in prop::collection::vec(some_shape(), 0..20)) {
            let parts = split(&shapes);
            let mut placed: Vec<usize> = parts.iter().flat_map(|part| part.members.clone()).collect();
            placed.sort_unstable();
            prop_assert_eq!(placed, (0..shapes.len()).collect::<Vec<_>>());
            for part in &parts {
                let own: Vec<&Shape> = part.members.iter().map(|n| &shapes[*n]).collect();
                prop_assert!(own.iter().all(|s| s.cpus <= part.cpus && s.memory_mib <= part.memory_mib));
                prop_assert!(own.iter().all(|s| (&s.flags, &s.devices) == (&own[0].flags, &own[0].devices)));
                let places = own.len() as u64;
                let (cpus, memory): (u64, u64) = (own.iter().map(|s| s.cpus).sum(), own.iter().map(|s| s.memory_mib).sum());
                prop_assert!(part.cpus * places * 2 <= cpus * 3, "idle CPUs: {:?}", part);
                prop_assert!(part.memory_mib * places * 2 <= memory * 3, "idle memory: {:?}", part);
            }
            for (n, shape) in shapes.iter().enumerate() {
                let of = |n: usize| parts.iter().position(|part| part.members.contains(&n));
                let twin = shapes.iter().position(|other| other == shape).unwrap_or(n);
                prop_assert_eq!(of(n), of(twin), "twins in two parts");
            }
            let alike = shapes.iter().all(|s| (&s.flags, &s.devices) == (&shapes[0].flags, &shapes[0].devices));
            let whole = shapes.iter().enumerate().fold(Part::default(), |part, (n, shape)| part.with(shape, &[n]));
            if !shapes.is_empty() && alike && whole.is_near() {
                prop_assert_eq!(parts.len(), 1);
            }
        }
    }
}
