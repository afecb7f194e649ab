//! hpk-pause
fn main() {}
