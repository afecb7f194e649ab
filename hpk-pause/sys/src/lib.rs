//! hpk-sys
