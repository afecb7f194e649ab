//! Gangs' jobs as Slurm lists them: one job for an allocation, or one for each component of a heterogeneous job. Pure.

use crate::executor::run::{Run, RunPhase};
use std::path::Path;

/// The job of one allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// The gang's id.
    pub(super) gang: String,
    /// Slurm's id of all of it.
    pub(super) job: String,
    /// Its components, or the one job, as they are listed; there is at least one.
    runs: Vec<Run>,
}

impl Whole {
    /// Over and gone from its nodes.
    pub(super) fn is_gone(&self) -> bool {
        self.runs.iter().all(Run::is_gone)
    }

    /// Over, though its nodes may not be free yet.
    pub(super) fn is_over(&self) -> bool {
        self.runs.iter().all(|run| run.phase.is_over())
    }

    /// The job as it is for members of a component. One that is not listed is as the others are.
    pub(super) fn of(&self, component: u32) -> Run {
        let is = |run: &&Run| run.component.as_ref().map_or(0, |c| c.number) == component;
        let own = self.runs.iter().find(is).or(self.runs.first());
        let mut own = own.cloned().unwrap_or_else(|| Run::lost(&self.job, &self.gang));
        own.id.clone_from(&self.job);
        let says_why = |run: &Run| !matches!(run.reason.as_str(), "" | "None");
        // They begin together, so what one waits for holds for all.
        if own.phase == RunPhase::Pending
            && !says_why(&own)
            && let Some(other) = self.runs.iter().find(|run| run.phase == RunPhase::Pending && says_why(run))
        {
            own.reason.clone_from(&other.reason);
            own.why.clone_from(&other.why);
        }
        own
    }
}

/// Takes the jobs of gangs, whose folders are in `gangs`, out of a list.
pub(super) fn take(runs: Vec<Run>, gangs: &Path) -> (Vec<Run>, Vec<Whole>) {
    let (mut others, mut wholes) = (Vec::new(), Vec::<Whole>::new());
    for run in runs {
        let Some(gang) = gang_of(&run, gangs).map(str::to_owned) else {
            others.push(run);
            continue;
        };
        let job = run.component.as_ref().map_or(&run.id, |component| &component.whole).clone();
        let is_component = run.component.is_some();
        match wholes.iter_mut().find(|whole| is_component && whole.gang == gang && whole.job == job) {
            Some(whole) => whole.runs.push(run),
            None => wholes.push(Whole { gang, job, runs: vec![run] }),
        }
    }
    (others, wholes)
}

/// The id of the gang whose allocation a run is, or a component of it.
fn gang_of<'a>(run: &'a Run, gangs: &Path) -> Option<&'a str> {
    let folder = Path::new(&run.folder);
    (folder.parent() == Some(gangs)).then(|| folder.file_name()?.to_str()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::run::Component;

    fn run(id: &str, folder: &str, phase: RunPhase) -> Run {
        Run { folder: folder.to_owned(), phase, ..Run::lost(id, "") }
    }

    fn component(id: &str, number: u32, phase: RunPhase, reason: &str) -> Run {
        let component = Some(Component { whole: "7".to_owned(), number });
        Run { component, reason: reason.to_owned(), ..run(id, "/h/gangs/g-0", phase) }
    }

    #[test]
    fn an_allocation_is_known_by_its_folder() {
        let gangs = Path::new("/h/gangs");
        for other in ["/h/pods/u", "/other/gangs/g-0", "", "/h/gangs"] {
            let (others, wholes) = take(vec![run("7", other, RunPhase::Running)], gangs);
            assert_eq!((others.len(), wholes.len()), (1, 0), "{other}");
        }
        let list = vec![run("7", "/h/gangs/g-0", RunPhase::Running), run("8", "/h/gangs/h-0", RunPhase::Running)];
        let (others, wholes) = take(list, gangs);
        let ids: Vec<(&str, &str)> = wholes.iter().map(|whole| (whole.gang.as_str(), whole.job.as_str())).collect();
        assert_eq!((others.len(), ids), (0, vec![("g-0", "7"), ("h-0", "8")]));
    }

    #[test]
    fn components_are_one_job_and_each_has_its_own_state() {
        use RunPhase::{NodeFail, Pending, Running};
        let whole = |list: Vec<Run>| take(list, Path::new("/h/gangs")).1;
        let list = whole(vec![component("8", 1, NodeFail, ""), component("7", 0, Running, "")]);
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].of(0).phase, list[0].of(1).phase), (Running, NodeFail));
        assert_eq!((list[0].of(0).id, list[0].of(1).id), ("7".to_owned(), "7".to_owned()));
        assert!(!list[0].is_gone() && !list[0].is_over());
        let waits = whole(vec![component("7", 0, Pending, "None"), component("8", 1, Pending, "Resources")]);
        assert_eq!((waits[0].of(0).reason, waits[0].of(1).reason), ("Resources".to_owned(), "Resources".to_owned()));
        let alone = whole(vec![component("8", 1, NodeFail, "")]);
        assert_eq!((alone[0].job.as_str(), alone[0].of(0).phase, alone[0].is_gone()), ("7", NodeFail, true));
    }
}
