//! Flags of sbatch and srun from a pod's annotations: what is passed on is a flag of a list, by its whole name, and none of ours.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../../hpk-kubelet/src/executor/slurm/flags/mod.rs"]
mod flags;

use hpk_api::pod_flags::{FLAGS, MPI_FLAGS, PodFlags};
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

/// They say where the job's files are, who it is, and what is run.
const OURS: [&str; 12] = [
    "output", "error", "input", "chdir", "open-mode", "job-name", "comment", "signal", "array", "wrap", "export", "get-user-env",
];

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let of = |key: &str| Some(BTreeMap::from([(key.to_owned(), text.to_owned())]));
    let job = flags::of_job(of(FLAGS).as_ref(), PodFlags::Allow);
    let step = flags::of_step(of(MPI_FLAGS).as_ref(), PodFlags::Allow);
    for argument in job.into_iter().chain(step).flatten() {
        let name = argument.strip_prefix("--").expect("a long name").split('=').next().expect("a name");
        assert!(!OURS.contains(&name) && !argument.contains(['\0', '\n']), "{argument:?}");
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name:?}");
    }
    let narrow = flags::of_job(of(FLAGS).as_ref(), PodFlags::Deny);
    assert!(narrow.is_err() || narrow.is_ok_and(|given| given.is_empty()));
});
