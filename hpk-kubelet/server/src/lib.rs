//! hpk-server
