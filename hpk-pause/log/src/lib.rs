//! hpk-log

/// Names one open log of a [`LogHandle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogId(pub(crate) u64);
