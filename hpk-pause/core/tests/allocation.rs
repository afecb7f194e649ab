//! What a quiet pod allocates: nothing. It counts what the whole process allocates. So it is alone in its file, and without the
//! test harness, whose own thread allocates beside it.

mod common;

use common::{running, second};

#[global_allocator]
static HEAP: dhat::Alloc = dhat::Alloc;

fn main() {
    let mut supervisor = running();
    let mut out = Vec::with_capacity(64);
    (1..11).for_each(|n| second(&mut supervisor, n, &mut out));
    let _heap = dhat::Profiler::builder().testing().build();
    let before = dhat::HeapStats::get().total_blocks;
    (11..1011).for_each(|n| second(&mut supervisor, n, &mut out));
    assert_eq!(dhat::HeapStats::get().total_blocks, before, "in 11,000 events");
}
