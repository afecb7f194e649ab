//! Ends: signals to containers, children reaped, output drained, and what is kept of each end.

use super::step::StepEnd;
use super::{Draining, Outcome, Owner, Performer};
use hpk_core::{ContainerIndex, Exit, ExitCause};
use hpk_log::LogEvent;
use hpk_sys::launch::{PidNamespace, nested};
use hpk_sys::reap::Reaped;
use hpk_sys::signals;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Longest termination message from its file, bytes.
const MAX_MESSAGE: u64 = 4096;

impl Performer {
    /// A child was reaped.
    pub(crate) fn reaped(&mut self, reaped: Reaped) {
        match self.processes.remove(&reaped.pid) {
            Some(Owner::Starting(mut pending)) => {
                pending.ended = Some(reaped.cause);
                self.processes.insert(reaped.pid, Owner::Starting(pending));
            }
            Some(Owner::Container(container)) => self.main_ended(container, reaped.cause),
            Some(Owner::Joined(exit)) => drop(exit.send(reaped.cause.code())),
            Some(Owner::Nobody) | None => {}
        }
    }

    /// Was this child started here? Orphans were not.
    #[must_use]
    pub(crate) fn owns(&self, pid: Pid) -> bool {
        self.processes.contains_key(&pid)
    }

    /// The first process of a container has ended: its output is drained next.
    pub(super) fn main_ended(&mut self, container: ContainerIndex, cause: hpk_sys::reap::ExitCause) {
        if let Some(step) = self.running.get_mut(&container).and_then(|running| running.step.as_mut())
            && !step.keeper_ended()
        {
            return;
        }
        let cause = match cause {
            hpk_sys::reap::ExitCause::Exited(code) => ExitCause::Code(code),
            hpk_sys::reap::ExitCause::Signaled { signal, .. } => ExitCause::Signal(signal),
        };
        self.container_ended(container, cause);
    }

    /// Nothing of a container is left, or it is ended here: its output is drained next.
    pub(super) fn container_ended(&mut self, container: ContainerIndex, cause: ExitCause) {
        let members = self.members();
        let Some(mut running) = self.running.remove(&container) else { return };
        let step = running.step.take().and_then(|step| step.end);
        let killed = cause.code() == 137 && !running.killed;
        let oom = running.out_of_memory || self.memory.ended(container, killed, self.whole, &members);
        // Where it ended by itself before it could be killed, it is told as the kernel's group kill would have it.
        let cause = if oom { ExitCause::Signal(Signal::SIGKILL as i32) } else { cause };
        let (cause, oom) = match &step {
            // Of a step it is the ranks' nodes that know.
            Some(StepEnd::Exited(exit)) => {
                (exit.cause, exit.oom || (running.out_of_memory && exit.cause.code() == cause.code()))
            }
            Some(StepEnd::Failed(_)) => (cause, false),
            None => (cause, oom),
        };
        for task in &running.tasks {
            task.abort();
        }
        if let Some(apptainer) = running.apptainer_ns {
            nested::sweep(running.pidfd.as_fd(), apptainer, running.mount_ns);
        } else if !matches!(running.pid_namespace, PidNamespace::Own)
            && let Some(ns) = running.mount_ns
        {
            // Its end ends all of a PID namespace of its own; where that is another's, the rest is ours to end.
            let _ = signals::kill_all(ns);
        }
        let want_tail = running.want_tail && cause.code() != 0;
        let draining = Draining {
            container,
            instance: running.instance,
            cause,
            at: jiff::Timestamp::now(),
            oom,
            want_tail,
            message_file: running.message_file,
            writable: running.writable,
            step,
        };
        if let Some(id) = running.log {
            self.log.exited(id, want_tail);
            self.draining.insert(id, draining);
        } else {
            self.undrained.push(draining);
        }
    }

    /// The end of a container that has no log to drain.
    pub(crate) fn ended_without_log(&mut self) -> Option<Outcome> {
        let draining = self.undrained.pop()?;
        Some(self.exited(draining, None))
    }

    /// From the log's thread. Some: a container's end is complete.
    pub(crate) fn log_event(&mut self, event: LogEvent) -> Option<Outcome> {
        match event {
            LogEvent::Drained { id, tail } => {
                let draining = self.draining.remove(&id)?;
                for (instance, log) in self.last_logs.values_mut() {
                    if *log == Some(id) && *instance == draining.instance {
                        *log = None;
                    }
                }
                Some(self.exited(draining, tail))
            }
            LogEvent::Trouble { error, .. } => {
                hpk_api::say!("hpk-pause: a log cannot be written, its container is held back: {error}");
                None
            }
            LogEvent::Recovered { lost, .. } => {
                hpk_api::say!("hpk-pause: a log can be written again, {lost} bytes were lost");
                None
            }
        }
    }

    fn exited(&mut self, ended: Draining, tail: Option<Vec<u8>>) -> Outcome {
        let mut message = read_message(&ended.message_file);
        if message.is_empty() && ended.want_tail {
            message = tail.unwrap_or_default();
        }
        self.discard(ended.writable);
        let message = String::from_utf8_lossy(&message).into_owned();
        let message = match ended.step {
            Some(StepEnd::Failed(failure)) => return Outcome::Failed(ended.container, ended.instance, failure),
            Some(StepEnd::Exited(exit)) if message.is_empty() => exit.message,
            _ => message,
        };
        let exit = Exit { cause: ended.cause, oom: ended.oom, message, at: Some(ended.at) };
        Outcome::Exited(ended.container, ended.instance, exit)
    }

    /// Removes the writable layer of an instance, off the event loop: it may hold many files.
    pub(super) fn discard(&self, folder: PathBuf) {
        self.helper.run(move || {
            // What is left goes with the job's folder.
            let _ = std::fs::remove_dir_all(folder);
        });
    }

    /// Sends a signal to a container's first process.
    pub(crate) fn signal(&mut self, container: ContainerIndex, instance: u32, number: i32) {
        if let Some(running) = self.running.get_mut(&container).filter(|r| r.instance == instance) {
            running.killed |= number == Signal::SIGKILL as i32;
            running.send(number);
        }
    }

    /// SIGKILL to all of a container.
    pub(crate) fn kill(&mut self, container: ContainerIndex, instance: u32) {
        self.signal(container, instance, Signal::SIGKILL as i32);
        if let Some(running) = self.running.get(&container).filter(|r| r.instance == instance && r.step.is_none())
            && !matches!(running.pid_namespace, PidNamespace::Own)
            && let Some(ns) = running.mount_ns
        {
            let _ = signals::kill_all(ns);
        }
    }

    /// Kills a joined process's group, if it is still there.
    pub(crate) fn kill_joined(&mut self, leader: Pid) {
        if matches!(self.processes.get(&leader), Some(Owner::Joined(_))) {
            let _ = signals::kill_group(leader, Signal::SIGKILL);
        }
    }

    /// Abandons the probes and hooks of an instance.
    pub(crate) fn cancel(&mut self, container: ContainerIndex, instance: u32) {
        if let Some(running) = self.running.get_mut(&container).filter(|r| r.instance == instance) {
            for task in running.tasks.drain(..) {
                task.abort();
            }
        }
    }
}

/// The last bytes of the termination message file; a container may have put anything there.
fn read_message(path: &Path) -> Vec<u8> {
    let mut message = Vec::new();
    let Ok(mut file) = File::open(path) else { return message };
    let length = file.metadata().map_or(0, |m| m.len());
    if length > MAX_MESSAGE && file.seek(SeekFrom::Start(length - MAX_MESSAGE)).is_err() {
        return message;
    }
    let _ = file.take(MAX_MESSAGE).read_to_end(&mut message);
    message
}
