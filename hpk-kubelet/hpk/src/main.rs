//! hpk
fn main() {}
