//! hpk-netns
fn main() {}
