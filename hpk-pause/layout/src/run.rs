//! Names in the folder of a run of the local executor, `HPK_HOME/runs/<id>`, and beside it.

/// What the run takes and when its turn came, written by hpk-kubelet.
pub const RECORD: &str = "run.json";
/// `hpk_api::local::Process`, written by the run's first process.
pub const PROCESS: &str = "process.json";
/// `hpk_api::local::End`, written by the run's first process at its end.
pub const END: &str = "end.json";
/// In the folder of all runs: the last id that was given.
pub const LAST: &str = "last";
