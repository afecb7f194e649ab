//! A pod whose job Slurm has requeued: counts and ends go on from what the former job said last, and what was done stays done.

use crate::container::{Container, Phase};
use crate::policy::{self, Role, Verdict};
use crate::supervisor::Supervisor;
use crate::types::Now;
use hpk_api::plan::{SandboxPlan, VolumePlan};
use hpk_api::state::{ContainerState, PodState, RunState, StopCause, Termination};

impl Supervisor {
    pub(crate) fn resume(&mut self, previous: &PodState, now: Now) {
        // It was over, and its job was put back before Slurm had seen that.
        let was_done = previous.finished && previous.stopping != Some(StopCause::Signal);
        for i in 0..self.containers.len() {
            let name = &self.containers[i].plan.name;
            let Some(old) = previous.planned().find(|c| c.name == *name) else {
                continue;
            };
            let end = match &old.state {
                RunState::Terminated(end) => Some(end.clone()),
                RunState::Waiting { .. } => old.last_termination.clone(),
                RunState::Running { started_at } => {
                    Some(Termination::unseen(Some(*started_at), now.wall, &old.container_id))
                }
            };
            let stays = was_done || is_done(&self.plan, &self.containers[i], old);
            let count = old.restart_count + u32::from(!old.container_id.is_empty());
            let container = &mut self.containers[i];
            container.next_instance = count;
            container.end = end.clone();
            if stays {
                container.phase = Phase::Ended;
                container.instance = old.restart_count;
            }
            let ready = container.ready();
            let state = self.container_state(i);
            state.restart_count = old.restart_count;
            state.container_id.clone_from(&old.container_id);
            if stays {
                state.state = old.state.clone();
                state.last_termination.clone_from(&old.last_termination);
                state.ready = ready;
            } else {
                state.last_termination = end;
            }
        }
    }
}

/// Whether a container had succeeded for good, and what it has made is still there: it wrote to no emptyDir of the former
/// job's node.
fn is_done(plan: &SandboxPlan, container: &Container, old: &ContainerState) -> bool {
    let succeeded = matches!(&old.state, RunState::Terminated(end) if end.exit_code == 0) && !old.told_to_end;
    let once = matches!(container.role, Role::Init | Role::Main)
        && policy::verdict(container.role, &container.plan, plan.restart_policy, 0) == Verdict::Done;
    let is_gone = |volume: &str| matches!(plan.volumes.get(volume), Some(VolumePlan::EmptyDir { .. }));
    let left_nothing = !container.plan.mounts.iter().any(|mount| !mount.read_only && is_gone(&mount.volume));
    succeeded && once && left_nothing
}
