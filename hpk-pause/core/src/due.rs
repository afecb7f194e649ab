//! Deadlines of a container: what is done when one passes, and when the next one is.

use crate::container::{KINDS, Phase, kind_index};
use crate::kill::Stage;
use crate::supervisor::Supervisor;
use crate::types::{Action, ContainerIndex, Now};

impl Supervisor {
    /// What is due for this container is done.
    pub(crate) fn fire(&mut self, i: usize, now: Now, out: &mut Vec<Action>) {
        let ending = self.ending.is_some();
        if let Phase::Delayed { .. } = self.containers[i].phase {
            self.containers[i].phase = Phase::Idle;
            self.containers[i].due = None;
            self.unsettled = true;
            return;
        }
        if self.containers[i].kill_stage().and_then(Stage::deadline).is_some_and(|d| d <= now.mono) {
            self.next_stage(i, now, out);
        }
        let container = &mut self.containers[i];
        let instance = container.instance;
        if let Some(started) = container.live().map(|live| live.started) {
            for kind in KINDS {
                if !container.eligible(kind, ending) {
                    continue;
                }
                if let Some(worker) = &mut container.workers[kind_index(kind)]
                    && worker.due(now.mono, started).is_some_and(|due| due <= now.mono)
                {
                    worker.begin(now.mono);
                    out.push(Action::Probe { container: ContainerIndex(i), instance, kind });
                }
            }
        }
        container.due = container.compute_due(now.mono, ending);
    }

    /// Brings `started`, `ready` and the deadline of a container in line with its record.
    pub(crate) fn refresh(&mut self, i: usize, now: Now) {
        let ending = self.ending.is_some();
        let container = &mut self.containers[i];
        let (started, ready) = (container.started(), container.ready());
        let (slot, role) = (container.slot, container.role);
        let state = Self::list(&mut self.state, role).get_mut(slot);
        let was_started = state.as_ref().is_some_and(|s| s.started);
        if let Some(state) = state
            && (state.started != started || state.ready != ready)
        {
            state.started = started;
            state.ready = ready;
            self.changed = true;
        }
        if started && !was_started {
            if let Some(liveness) = &mut container.workers[1] {
                liveness.forget_ticks(now.mono);
            }
            // A startup probe has shown that it is up.
            let born = if container.workers[0].is_none() { container.live().map(|live| live.started) } else { None };
            if let Some(readiness) = &mut container.workers[2] {
                readiness.restart_ticker(now.mono, born);
            }
            self.unsettled = true;
        }
        container.due = container.compute_due(now.mono, ending);
    }
}
