//! hpk-link
