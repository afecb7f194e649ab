//! hpk-log
