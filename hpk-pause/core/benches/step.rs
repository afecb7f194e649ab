//! `step()`: events a second, with the events that a pod sees most.

#![allow(clippy::expect_used, clippy::panic, missing_docs, reason = "a measurement")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{CONTAINERS, at, running, second};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hpk_core::Event;

fn bench(c: &mut Criterion) {
    let mut supervisor = running();
    let mut out = Vec::with_capacity(64);
    let mut seconds = 0;
    for _ in 0..10 {
        seconds += 1;
        second(&mut supervisor, seconds, &mut out);
    }
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Elements(CONTAINERS as u64 + 1));
    group.bench_function("probes that change nothing", |b| {
        b.iter(|| {
            seconds += 1;
            second(&mut supervisor, seconds, &mut out);
        });
    });
    group.throughput(Throughput::Elements(1));
    let now = at(seconds * 1_000_000_000 + 1);
    group.bench_function("tick with nothing due", |b| b.iter(|| supervisor.step(now, Event::Tick, &mut out)));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
