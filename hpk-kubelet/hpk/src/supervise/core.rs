//! When a component is started, restarted and stopped. Pure: time comes in with events, effects go out as
//! actions.
//!
//! ```text
//!            needs ready            probe answers
//!  Waiting ─────────────▶ Starting ─────────────▶ Ready        (Once: exit 0 ─▶ Done)
//!                            │  exit                │ exit
//!                            ▼                      ▼
//!                         Backoff ◀─────────────────┘
//!                            │ delay over and needs ready
//!                            └──────────▶ Starting
//!  stop: Starting, Ready ─▶ Stopping ─(grace over: KILL)─▶ Stopped; the others are Stopped at once.
//!        A component is told to stop when all that need it have Stopped.
//! ```

use std::time::Duration;

/// Index of a component.
pub(crate) type Id = usize;
/// Time since the supervisor's start.
pub(crate) type Time = Duration;

const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A component that served this long starts its back-off anew.
const STEADY: Duration = Duration::from_secs(60);

/// What the core has to know of a component.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// Those that must be ready before it starts.
    pub needs: Vec<Id>,
    /// Ready when it has ended with 0, and not started again.
    pub once: bool,
    /// Between TERM and KILL.
    pub grace: Duration,
}

/// Where a component stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// For those it needs.
    Waiting,
    /// Started, does not serve yet.
    Starting,
    /// Serves since.
    Ready(Time),
    /// Has ended; not before.
    Backoff(Time),
    /// A one-time task is over, well.
    Done,
    /// It was told to stop. At this time it is killed.
    Stopping(Time),
    /// Ended, and stays so.
    Stopped,
}

impl State {
    fn serves(self) -> bool {
        matches!(self, Self::Ready(_) | Self::Done)
    }
    fn runs(self) -> bool {
        matches!(self, Self::Starting | Self::Ready(_) | Self::Stopping(_))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time has come ([`Core::deadline`]); also the first event.
    Tick,
    /// The probe has its answer.
    Served(Id),
    /// The process is gone, or could not be started.
    Ended {
        id: Id,
        /// Exit code 0.
        success: bool,
    },
    /// Stop everything.
    Stop,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the process and ask its probe until it answers.
    Start(Id),
    /// SIGTERM.
    Term(Id),
    /// SIGKILL.
    Kill(Id),
    /// All have stopped: leave.
    Finish,
}

/// One component's state.
#[derive(Clone, Debug)]
struct Slot {
    spec: Spec,
    state: State,
    restarts: u32,
    /// Ends in a row without a steady time between.
    failures: u32,
    killed: bool,
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    slots: Vec<Slot>,
    stopping: bool,
    finished: bool,
}

impl Core {
    /// Nothing started yet.
    #[must_use]
    pub(crate) fn new(specs: Vec<Spec>) -> Self {
        let slots = specs
            .into_iter()
            .map(|spec| Slot { spec, state: State::Waiting, restarts: 0, failures: 0, killed: false })
            .collect();
        Self { slots, stopping: false, finished: false }
    }

    /// Where `id` stands.
    #[must_use]
    pub(crate) fn state(&self, id: Id) -> State {
        self.slots[id].state
    }
    /// How often it was started again.
    #[must_use]
    pub(crate) fn restarts(&self, id: Id) -> u32 {
        self.slots[id].restarts
    }
    /// Whether everything is to stop.
    #[must_use]
    pub(crate) fn stopping(&self) -> bool {
        self.stopping
    }
    /// Whether every component serves.
    #[must_use]
    pub(crate) fn all_serve(&self) -> bool {
        self.slots.iter().all(|s| s.state.serves())
    }

    /// The next time at which [`Event::Tick`] changes something.
    #[must_use]
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.slots
            .iter()
            .filter_map(|s| match s.state {
                // A delay that is over but whose needs are not ready waits for them, not for time.
                State::Backoff(at) if self.needs_serve(s) => Some(at),
                State::Stopping(at) if !s.killed => Some(at),
                _ => None,
            })
            .min()
    }

    /// Takes in one event.
    pub(crate) fn step(&mut self, now: Time, event: Event) -> Vec<Action> {
        match event {
            Event::Tick => {}
            Event::Served(id) => {
                let slot = &mut self.slots[id];
                if slot.state == State::Starting && !slot.spec.once {
                    slot.state = State::Ready(now);
                }
            }
            Event::Ended { id, success } => self.ended(now, id, success),
            Event::Stop => self.stopping = true,
        }
        if self.stopping { self.stop_some(now) } else { self.start_some(now) }
    }

    fn ended(&mut self, now: Time, id: Id, success: bool) {
        let stopping = self.stopping;
        let slot = &mut self.slots[id];
        if !slot.state.runs() {
            return;
        }
        if let State::Ready(since) = slot.state
            && now.saturating_sub(since) >= STEADY
        {
            slot.failures = 0;
        }
        slot.state = if stopping {
            State::Stopped
        } else if slot.spec.once && success {
            State::Done
        } else {
            let delay = LONGEST_DELAY.min(FIRST_DELAY.saturating_mul(1 << slot.failures.min(16)));
            slot.failures = slot.failures.saturating_add(1);
            State::Backoff(now + delay)
        };
    }

    fn start_some(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        for id in 0..self.slots.len() {
            let due = match self.slots[id].state {
                State::Waiting => true,
                State::Backoff(at) => at <= now,
                _ => false,
            };
            if due && self.needs_serve(&self.slots[id]) {
                let slot = &mut self.slots[id];
                if slot.state != State::Waiting {
                    slot.restarts = slot.restarts.saturating_add(1);
                }
                slot.state = State::Starting;
                actions.push(Action::Start(id));
            }
        }
        actions
    }

    fn stop_some(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        // Backwards, so that one pass sees each after all that need it.
        for id in (0..self.slots.len()).rev() {
            let needed = self.slots.iter().any(|s| s.spec.needs.contains(&id) && s.state != State::Stopped);
            let slot = &mut self.slots[id];
            match slot.state {
                State::Stopping(at) if at <= now && !slot.killed => {
                    slot.killed = true;
                    actions.push(Action::Kill(id));
                }
                State::Starting | State::Ready(_) if !needed => {
                    slot.state = State::Stopping(now + slot.spec.grace);
                    actions.push(Action::Term(id));
                }
                // A one-time task that is done still stands between those that need it and what it needs.
                State::Waiting | State::Backoff(_) | State::Done if !needed => slot.state = State::Stopped,
                _ => {}
            }
        }
        if !self.finished && self.slots.iter().all(|s| s.state == State::Stopped) {
            self.finished = true;
            actions.push(Action::Finish);
        }
        actions
    }

    fn needs_serve(&self, slot: &Slot) -> bool {
        slot.spec.needs.iter().all(|n| self.slots[*n].state.serves())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETCD: Id = 0;
    const API: Id = 1;
    const ONCE: Id = 2;
    const KUBELET: Id = 3;

    fn core() -> Core {
        let spec = |needs: &[Id], once| Spec { needs: needs.to_vec(), once, grace: Duration::from_secs(10) };
        Core::new(vec![spec(&[], false), spec(&[ETCD], false), spec(&[API], true), spec(&[ONCE], false)])
    }

    fn s(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    fn up() -> Core {
        let mut c = core();
        assert_eq!(c.step(s(0), Event::Tick), [Action::Start(ETCD)]);
        assert_eq!(c.step(s(1), Event::Served(ETCD)), [Action::Start(API)]);
        assert_eq!(c.step(s(2), Event::Served(API)), [Action::Start(ONCE)]);
        assert_eq!(c.step(s(3), Event::Served(ONCE)), [], "started is not done");
        assert_eq!(c.step(s(3), Event::Ended { id: ONCE, success: true }), [Action::Start(KUBELET)]);
        assert!(!c.all_serve());
        assert_eq!(c.step(s(4), Event::Served(KUBELET)), []);
        assert!(c.all_serve());
        c
    }

    #[test]
    fn started_in_order_and_stopped_in_reverse() {
        let mut c = up();
        assert_eq!(c.step(s(5), Event::Stop), [Action::Term(KUBELET)]);
        assert_eq!(c.step(s(6), Event::Ended { id: KUBELET, success: true }), [Action::Term(API)]);
        assert_eq!(c.deadline(), Some(s(16)));
        assert_eq!(c.step(s(16), Event::Tick), [Action::Kill(API)]);
        assert_eq!(c.step(s(17), Event::Tick), [], "killed once");
        assert_eq!(c.step(s(18), Event::Ended { id: API, success: false }), [Action::Term(ETCD)]);
        assert_eq!(c.step(s(19), Event::Ended { id: ETCD, success: true }), [Action::Finish]);
        assert_eq!(c.step(s(20), Event::Tick), []);
    }

    #[test]
    fn the_dead_are_restarted_with_growing_delays() {
        let mut c = up();
        assert_eq!(c.step(s(10), Event::Ended { id: API, success: true }), []);
        let mut now = s(10);
        let mut delays = Vec::new();
        for _ in 0..10 {
            let at = c.deadline().unwrap();
            delays.push(at - now);
            now = at;
            assert_eq!(c.step(now, Event::Tick), [Action::Start(API)]);
            assert_eq!(c.step(now, Event::Ended { id: API, success: false }), []);
        }
        assert_eq!(delays[..3], [FIRST_DELAY, FIRST_DELAY * 2, FIRST_DELAY * 4]);
        assert_eq!(delays[9], LONGEST_DELAY);
        // The one that needs it is left running: it finds the server again by itself.
        assert!(matches!(c.state(KUBELET), State::Ready(_)));

        // After a steady time the delay is short again.
        let at = c.deadline().unwrap();
        assert_eq!(c.step(at, Event::Tick), [Action::Start(API)]);
        assert_eq!(c.step(at, Event::Served(API)), []);
        let later = at + STEADY;
        c.step(later, Event::Ended { id: API, success: false });
        assert_eq!(c.deadline(), Some(later + FIRST_DELAY));
    }

    #[test]
    fn a_restart_waits_for_what_it_needs() {
        let mut c = core();
        c.step(s(0), Event::Tick);
        c.step(s(1), Event::Served(ETCD));
        c.step(s(2), Event::Ended { id: API, success: false });
        c.step(s(2), Event::Ended { id: ETCD, success: false });
        assert_eq!(c.step(s(3), Event::Tick), [Action::Start(ETCD)]);
        assert_eq!(c.deadline(), None, "nothing to wake for");
        assert_eq!(c.step(s(4), Event::Served(ETCD)), [Action::Start(API)]);
    }

    #[test]
    fn stopping_while_starting_ends_at_once_what_never_started() {
        let mut c = core();
        c.step(s(0), Event::Tick);
        assert_eq!(c.step(s(1), Event::Stop), [Action::Term(ETCD)]);
        assert_eq!(c.state(KUBELET), State::Stopped);
        // A late answer changes nothing.
        assert_eq!(c.step(s(1), Event::Served(ETCD)), []);
        assert_eq!(c.step(s(2), Event::Ended { id: ETCD, success: false }), [Action::Finish]);
    }

    #[test]
    fn a_failed_one_time_task_is_tried_again() {
        let mut c = core();
        c.step(s(0), Event::Tick);
        c.step(s(1), Event::Served(ETCD));
        c.step(s(2), Event::Served(API));
        assert_eq!(c.step(s(3), Event::Ended { id: ONCE, success: false }), []);
        assert_eq!(c.step(s(4), Event::Tick), [Action::Start(ONCE)]);
        assert_eq!(c.step(s(5), Event::Ended { id: ONCE, success: true }), [Action::Start(KUBELET)]);
        assert_eq!(c.restarts(ONCE), 1);
    }
}
