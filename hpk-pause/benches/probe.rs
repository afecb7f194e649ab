//! A network probe as the supervisor runs it: a task of its one thread that tells its outcome over a channel. The server is
//! another thread's. Beside each the same exchange by blocking calls alone, which no supervisor can be faster than.
//!
//! The next one begins when the server has closed the one before, as probes a second apart find it: on a busy machine its
//! queue would overflow else, and the kernel drops what comes then for a second.

#![allow(clippy::expect_used, clippy::panic, missing_docs, reason = "a measurement")]

use criterion::{Criterion, criterion_group, criterion_main};
use hpk_api::probe::Handler;
use hpk_core::ProbeOutcome;
use hpk_pause::ProbeContext;
use hpk_pause::network_probe;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Serves one connection after the other, and counts those that it has closed.
struct Server {
    port: u16,
    closed: Arc<AtomicU64>,
}

impl Server {
    /// Without an answer a connection is only accepted.
    fn start(answer: Option<&'static [u8]>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        let closed = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&closed);
        std::thread::spawn(move || {
            let mut request = [0u8; 4096];
            for mut stream in listener.incoming().flatten() {
                if let Some(answer) = answer {
                    let mut have = 0;
                    while !request[..have].ends_with(b"\r\n\r\n") {
                        have += stream.read(&mut request[have..]).expect("a request");
                    }
                    stream.write_all(answer).expect("an answer");
                }
                drop(stream);
                counts.fetch_add(1, Ordering::Release);
            }
        });
        Self { port, closed }
    }

    /// Time of so many exchanges, each with a server at rest.
    fn time(&self, count: u64, mut exchange: impl FnMut()) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..count {
            let before = self.closed.load(Ordering::Acquire);
            let begun = Instant::now();
            exchange();
            total += begun.elapsed();
            while self.closed.load(Ordering::Acquire) == before {
                std::thread::yield_now();
            }
        }
        total
    }
}

fn bench(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (outcomes, mut told) = tokio::sync::mpsc::unbounded_channel();
    let context = ProbeContext { pod_ip: Ipv4Addr::LOCALHOST.into(), kube_version: "1.37".to_owned() };
    let mut probe = |handler: &Handler| {
        let (handler, context, outcomes) = (handler.clone(), context.clone(), outcomes.clone());
        runtime.block_on(async {
            tokio::spawn(async move {
                let outcome = network_probe(&handler, Duration::from_secs(1), &context).await;
                let _ = outcomes.send(outcome);
            });
            assert_eq!(told.recv().await, Some(ProbeOutcome::Success));
        });
    };
    let mut group = c.benchmark_group("probe");
    let server = Server::start(None);
    let port = server.port;
    let dial = Handler::TcpSocket { host: None, port };
    group.bench_function("tcp", |b| b.iter_custom(|n| server.time(n, || probe(&dial))));
    group.bench_function("tcp, calls alone", |b| {
        b.iter_custom(|n| {
            server.time(n, || drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection")))
        });
    });
    let server = Server::start(Some(ANSWER));
    let port = server.port;
    let (scheme, path) = ("http".to_owned(), "/healthz".to_owned());
    let get = Handler::HttpGet { scheme, host: None, port, path, headers: Vec::new() };
    group.bench_function("http", |b| b.iter_custom(|n| server.time(n, || probe(&get))));
    group.bench_function("http, calls alone", |b| {
        let mut answer = [0u8; 4096];
        b.iter_custom(|n| {
            server.time(n, || {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection");
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("a request");
                let mut have = 0;
                while !answer[..have].ends_with(b"ok") {
                    have += stream.read(&mut answer[have..]).expect("an answer");
                }
            })
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    // Each connection leaves its port in TIME_WAIT for a minute: no more of them than there are ports.
    config = Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500)).sample_size(20);
    targets = bench
}
criterion_main!(benches);
