//! hpk-kubelet
fn main() {}
