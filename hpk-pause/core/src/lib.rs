//! hpk-core
