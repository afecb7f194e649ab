//! Runs probes and hooks: one task each, which reports its outcome and decides nothing.
//!
//! Exec handlers run in the container ([`Joined`]); the others go over the network ([`crate::probe`]).

use crate::probe::{self, HookDone, ProbeContext};
use crate::process::{Ended, Joined};
use hpk_api::probe::Handler;
use hpk_core::{HookFailure, ProbeOutcome};
use hpk_sys::launch::LaunchError;
use std::time::Duration;

/// Times that a probe is tried while it cannot be made at all (upstream's maxProbeRetries).
pub(crate) const ATTEMPTS: usize = 3;

/// What a try of a probe comes to; None: it could not be made and is to be tried again.
#[must_use]
pub(crate) fn tried(outcome: ProbeOutcome, attempt: usize) -> Option<ProbeOutcome> {
    match outcome {
        ProbeOutcome::Error(_) if attempt < ATTEMPTS => None,
        outcome => Some(outcome),
    }
}

/// Result of an exec probe's run.
#[must_use]
pub(crate) fn exec_probe(command: &[String], timeout: Duration, ended: Result<Ended, LaunchError>) -> ProbeOutcome {
    match ended {
        Ok(Ended::Exit { code: 0, .. }) => ProbeOutcome::Success,
        Ok(Ended::Exit { output, .. }) => ProbeOutcome::Failure(String::from_utf8_lossy(&output).into_owned()),
        Ok(Ended::TimedOut) => ProbeOutcome::Failure(format!(
            "command timed out: {:?} timed out after {}",
            command.join(" "),
            hpk_api::go_duration::format(timeout)
        )),
        Err(error) => ProbeOutcome::Error(error.to_string()),
    }
}

/// A network probe, once.
pub async fn network_probe(handler: &Handler, timeout: Duration, context: &ProbeContext) -> ProbeOutcome {
    match probe::run(handler, timeout, context).await {
        probe::Outcome::Success => ProbeOutcome::Success,
        probe::Outcome::Warning(text) => ProbeOutcome::Warning(text),
        probe::Outcome::Failure(text) => ProbeOutcome::Failure(text),
        probe::Outcome::Unknown(text) => ProbeOutcome::Error(text),
    }
}

/// Result of an exec hook's run; hooks have no time limit of their own.
///
/// # Errors
/// What upstream says of it.
pub(crate) fn exec_hook(command: &[String], ended: Result<Ended, LaunchError>) -> Result<(), HookFailure> {
    match ended {
        Ok(Ended::Exit { code: 0, .. }) => Ok(()),
        Ok(Ended::Exit { code, output, stderr }) => Err(HookFailure {
            error: format!("command '{}' exited with {code}: {}", command.join(" "), String::from_utf8_lossy(&stderr)),
            output: String::from_utf8_lossy(&output).into_owned(),
        }),
        Ok(Ended::TimedOut) => Ok(()),
        Err(error) => Err(HookFailure { error: error.to_string(), output: String::new() }),
    }
}

/// A hook over the network: only a request that could not be made is a failure, whatever the answer's status.
/// Hooks have no time limit of their own; the grace period bounds preStop.
///
/// # Errors
/// The client's words.
pub(crate) async fn network_hook(handler: &Handler, context: &ProbeContext) -> Result<HookDone, HookFailure> {
    let done = probe::run_http_hook(handler, context).await;
    done.map_err(|error| HookFailure { error, output: String::new() })
}

/// Waits for an exec handler.
pub(crate) async fn run_exec(
    joined: Result<Joined, LaunchError>,
    timeout: Option<Duration>,
) -> Result<Ended, LaunchError> {
    joined?.run(timeout).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_not_be_made_is_tried_again_and_three_times_at_most() {
        let (error, failure) = (ProbeOutcome::Error("e".to_owned()), ProbeOutcome::Failure("f".to_owned()));
        for (outcome, attempt, again) in [
            (&error, 1, true),
            (&error, 2, true),
            (&error, 3, false),
            (&failure, 1, false),
            (&ProbeOutcome::Success, 1, false),
            (&ProbeOutcome::Warning(String::new()), 1, false),
        ] {
            let done = (!again).then(|| outcome.clone());
            assert_eq!(tried(outcome.clone(), attempt), done, "{outcome:?} {attempt}");
        }
    }

    #[test]
    fn exec_texts_are_upstreams() {
        let command = ["sleep".to_owned(), "5".to_owned()];
        let second = Duration::from_secs(1);
        let exit = |code| Ok(Ended::Exit { code, output: b"out\nerr\n".to_vec(), stderr: b"err\n".to_vec() });
        for (ended, outcome) in [
            (exit(0), ProbeOutcome::Success),
            (exit(1), ProbeOutcome::Failure("out\nerr\n".to_owned())),
            (
                Ok(Ended::TimedOut),
                ProbeOutcome::Failure("command timed out: \"sleep 5\" timed out after 1s".to_owned()),
            ),
            (Err(LaunchError::NotRunning), ProbeOutcome::Error("container is not running".to_owned())),
        ] {
            assert_eq!(exec_probe(&command, second, ended), outcome);
        }
        let failure = exec_hook(&command, exit(7)).unwrap_err();
        assert_eq!(failure.error, "command 'sleep 5' exited with 7: err\n");
        assert_eq!(failure.output, "out\nerr\n");
    }
}
