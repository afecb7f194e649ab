//! hpk-pause as a library: the parts that its `main` puts together, open to tests and benches.

pub mod control;
pub mod probe;
