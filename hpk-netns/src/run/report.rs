//! `launch.json`: why the job has no (more) supervisor.

use hpk_api::state::{LaunchReport, PodState};
use hpk_layout::pod as files;
use std::io;
use std::path::Path;

/// Writes the report.
pub(crate) fn write(pod: &Path, report: &LaunchReport) -> io::Result<()> {
    hpk_layout::replace(&pod.join(files::LAUNCH), &serde_json::to_vec_pretty(report)?, 0o600)
}

/// Takes the report back: what it told is over, or was an earlier job's.
pub(crate) fn clear(pod: &Path) -> io::Result<()> {
    match std::fs::remove_file(pod.join(files::LAUNCH)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the supervisor of this job had its last word: it finished its pod by itself.
pub(crate) fn supervisor_finished(pod: &Path, job_id: Option<&str>) -> bool {
    let Ok(bytes) = std::fs::read(files::inside(pod).join(files::STATUS)) else { return false };
    let Ok(state) = serde_json::from_slice::<PodState>(&bytes) else { return false };
    state.finished && (state.job_id.is_none() || state.job_id.as_deref() == job_id)
}

/// What to say of a parent container that ended before its supervisor had the last word.
pub(crate) fn explain(code: i32, tail: &str, had_status: bool) -> (&'static str, String) {
    let quoted = if tail.is_empty() { String::new() } else { format!(": {tail}") };
    if had_status {
        ("supervisor", format!("the pod's supervisor ended with code {code} before its pod had{quoted}"))
    } else {
        (
            "apptainer",
            format!(
                "apptainer could not start the pod's parent container, code {code}{quoted}; `hpk doctor` on the compute node says what is missing"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_job_or_an_unfinished_one_is_no_last_word() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(!supervisor_finished(tmp.path(), Some("7")));
        std::fs::create_dir(files::inside(tmp.path())).unwrap();
        let put = |job: Option<&str>, finished| {
            let state = PodState { job_id: job.map(str::to_owned), finished, ..PodState::default() };
            std::fs::write(files::inside(tmp.path()).join(files::STATUS), serde_json::to_vec(&state).unwrap()).unwrap();
        };
        for (job, finished, want) in
            [(Some("7"), true, true), (Some("6"), true, false), (Some("7"), false, false), (None, true, true)]
        {
            put(job, finished);
            assert_eq!(supervisor_finished(tmp.path(), Some("7")), want, "{job:?} {finished}");
        }
    }

    #[test]
    fn the_report_is_whole_and_private() {
        let tmp = tempfile::tempdir().unwrap();
        let report = LaunchReport { step: "scratch".into(), message: "m".into(), ..LaunchReport::default() };
        write(tmp.path(), &report).unwrap();
        let read: LaunchReport =
            serde_json::from_slice(&std::fs::read(tmp.path().join(files::LAUNCH)).unwrap()).unwrap();
        assert_eq!(read, report);
        assert!(!tmp.path().join(".launch.json.new").exists());
    }
}
