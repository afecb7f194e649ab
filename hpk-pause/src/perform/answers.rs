//! Answers to control clients: attach, logs, use of resources.

use super::Performer;
use super::step::Step;
use crate::control::request::{AttachSession, LogSource, StatsSample};
use hpk_api::control::{ContainerStats, ControlError, ErrorCode, Usage};
use hpk_core::ContainerIndex;
use std::os::fd::OwnedFd;

impl Performer {
    /// The stdio of a running container.
    ///
    /// # Errors
    /// When it does not run, or no descriptor is left.
    pub(crate) fn attach(&self, container: ContainerIndex, stdin: bool) -> Result<AttachSession, ControlError> {
        let not_running = || ControlError { code: ErrorCode::Conflict, message: "container is not running".to_owned() };
        let internal = |e: std::io::Error| ControlError { code: ErrorCode::Internal, message: e.to_string() };
        let running = self.running.get(&container).ok_or_else(not_running)?;
        let log = running.log.ok_or_else(not_running)?;
        let copy = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let terminal = copy(&running.terminal).map_err(internal)?;
        let input = if running.terminal.is_some() { &running.terminal } else { &running.stdin };
        let input = if stdin { copy(input).map_err(internal)? } else { None };
        Ok(AttachSession { log, tty: terminal.is_some(), stdin: input, terminal, stdin_once: running.stdin_once })
    }

    /// The first attach has ended: a container with stdinOnce gets the end of its input.
    pub(crate) fn stdin_ended(&mut self, container: ContainerIndex) {
        if let Some(running) = self.running.get_mut(&container).filter(|r| r.stdin_once) {
            running.stdin = None;
        }
    }

    /// Where a container's log is.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn log_source(
        &self,
        name: &str,
        previous: bool,
        last_instance: Option<u32>,
    ) -> Result<LogSource, ControlError> {
        let (current, live) = match self.last_logs.get(name) {
            Some(&(instance, log)) => (Some(instance), log),
            None => (last_instance, None),
        };
        let missing = |what: &str| ControlError {
            code: ErrorCode::NotFound,
            message: format!("{what} container {name:?} not found"),
        };
        let current = current.ok_or_else(|| missing("log of"))?;
        let dir = self.paths.logs(name);
        if !previous {
            return Ok(LogSource { dir, restart_count: current, live });
        }
        let before = current.checked_sub(1).ok_or_else(|| missing("previous terminated"))?;
        Ok(LogSource { dir, restart_count: before, live: None })
    }

    /// Resource use now, read from /proc.
    #[must_use]
    pub(crate) fn stats(
        &self,
        stored: &hpk_core::StorageUse,
        name: impl Fn(ContainerIndex) -> Option<String>,
    ) -> StatsSample {
        let mut sample = StatsSample { volumes: stored.claims.clone(), ..StatsSample::default() };
        for (&container, running) in &self.running {
            let (Some(ns), Some(name)) = (running.mount_ns, name(container)) else { continue };
            let used = hpk_sys::procfs::usage(ns);
            let here = Usage {
                cpu_nanos: used.cpu_ns,
                memory_bytes: used.working_set_bytes,
                rss_bytes: used.rss_bytes,
                processes: u64::from(used.processes),
            };
            let usage = running.step.as_ref().and_then(Step::used).unwrap_or(here);
            sample.pod.cpu_nanos += usage.cpu_nanos;
            sample.pod.memory_bytes += usage.memory_bytes;
            sample.pod.rss_bytes += usage.rss_bytes;
            sample.pod.processes += usage.processes;
            let started_at = Some(running.started_at);
            let hpk_core::ContainerUse { rootfs, logs } = stored.containers.get(&name).copied().unwrap_or_default();
            sample.containers.push(ContainerStats { name, started_at, usage, rootfs_bytes: rootfs, log_bytes: logs });
        }
        sample.containers.sort_by(|a, b| a.name.cmp(&b.name));
        sample
    }

    /// Bytes of output that no log could take.
    #[must_use]
    pub(crate) fn log_bytes_lost(&self) -> u64 {
        self.log.counters().lost()
    }
}
