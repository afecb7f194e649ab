//! A pod whose job Slurm has requeued: counts and ends go on from what the former job said last.

use crate::supervisor::Supervisor;
use crate::types::Now;
use hpk_api::state::{PodState, RunState, Termination};

impl Supervisor {
    pub(crate) fn resume(&mut self, previous: &PodState, now: Now) {
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
            let count = old.restart_count + u32::from(!old.container_id.is_empty());
            let container = &mut self.containers[i];
            container.next_instance = count;
            container.end = end.clone();
            let state = self.container_state(i);
            state.restart_count = old.restart_count;
            state.last_termination = end;
            state.container_id.clone_from(&old.container_id);
        }
    }
}
