//! Measures the kubelet's end of many links: memory and CPU time at rest, and how fast one of them carries a supervisor's
//! bytes. Run by bench/links; prints a Markdown table's rows.
//!
//! ```text
//! links [LINKS] [SECONDS]       the kubelet's end: a real LinkServer, alone in this process
//!   └─ links pods FOLDER        all pods' ends, in a process of their own, with what production has: mutual TLS 1.3,
//!                               TCP keep-alive, the hello and the facts stream
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints for who calls it, and ends then")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use hpk_api::link::{Hello, NetUpdate};
use hpk_link::client::{ClientConfig, keep};
use hpk_link::server::{LinkEvent, LinkServer};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes that one stream carries.
const STREAMED: u64 = 4 << 30;
/// What a supervisor sends at once: hpk_api's frames are of this size.
const CHUNK: usize = 64 << 10;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // As hpk-kubelet.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pods", folder] => runtime.block_on(pods(Path::new(folder))),
        [links, seconds] => runtime.block_on(kubelet(links.parse().expect("LINKS"), seconds.parse().expect("SECONDS"))),
        _ => runtime.block_on(kubelet(2000, 60)),
    }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// CPU time of all threads of this process so far: user and system, from the scheduler's nanoseconds.
fn cpu() -> Duration {
    let of = |path: PathBuf| -> u64 {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    Duration::from_nanos(threads.map(|t| of(t.path())).sum())
}

/// Until three seconds have passed in which next to nothing ran: the start's work is over, however busy the machine is.
/// Links that never rest are measured as they are after a minute.
async fn settle() {
    let mut quiet = 0;
    for _ in 0..60 {
        let before = cpu();
        tokio::time::sleep(Duration::from_secs(1)).await;
        quiet = if cpu() - before < Duration::from_millis(2) { quiet + 1 } else { 0 };
        if quiet == 3 {
            return;
        }
    }
}

async fn kubelet(links: u32, seconds: u64) {
    let tmp = std::env::temp_dir().join(format!("hpk-links-{}", std::process::id()));
    std::fs::create_dir_all(&tmp).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (server, mut events) = LinkServer::start(address, &tmp.join("pki")).unwrap();
    server.listen(listener);
    tokio::spawn(async move { while events.net.recv().await.is_some() {} });
    for n in 0..links {
        let uid = format!("uid-{n}");
        server.issue(&uid, tmp.join(format!("{uid}.json")), Vec::new()).await.unwrap();
    }
    let before = resident();
    let began = Instant::now();
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args([Path::new("pods"), &tmp])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut up = 0;
    while up < links {
        match events.links.recv().await.expect("events") {
            LinkEvent::Up { .. } => up += 1,
            LinkEvent::Down { uid, reason } => eprintln!("{uid} went down: {reason}"),
            LinkEvent::Refused { uid, why } => eprintln!("{uid} was refused: {why}"),
        }
    }
    let all_up = began.elapsed();
    // A fact for every pod, as a change of a Service is: its buffers are given back again.
    server.broadcast(&[NetUpdate::ServicesSynced]).await;
    settle().await;
    let each = (resident() - before) / u64::from(links);

    let (cpu_before, rest) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let used = cpu() - cpu_before;
    assert_eq!(server.count().await, usize::try_from(links).unwrap(), "all links still stand");
    let percent = used.as_secs_f64() / rest.elapsed().as_secs_f64() * 100.0;

    let mut rates = Vec::new();
    for _ in 0..5 {
        let mut stream = server.open_supervisor("uid-0").await.unwrap();
        let mut buffer = vec![0; CHUNK];
        let (mut got, began) = (0, Instant::now());
        while got < STREAMED {
            let n = stream.read(&mut buffer).await.unwrap();
            assert!(n > 0, "ended after {got} bytes");
            got += n as u64;
        }
        rates.push(got as f64 / began.elapsed().as_secs_f64() / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    println!("| {links} links, all up again after a start | {:.1} s | | |", all_up.as_secs_f64());
    println!("| memory of an idle link in the kubelet | {:.1} KiB | ≤ 100 KiB | |", each as f64 / 1024.0);
    println!("| CPU of {links} idle links, {seconds} s | {percent:.3} % of a core | ≤ 0.5 % | |");
    println!(
        "| supervisor's socket → kubelet, one stream, 4 GiB, median of 5 | {:.0} MB/s ({:.0}–{:.0}) | ≥ 500 MB/s | |",
        rates[2], rates[0], rates[4]
    );
    let _ = child.kill().await;
    let _ = std::fs::remove_dir_all(&tmp);
}

/// One end for each credentials file; every stream into a supervisor gets bytes for as long as it is read.
async fn pods(folder: &Path) {
    let supervisor = folder.join("supervisor.sock");
    let listener = UnixListener::bind(&supervisor).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let chunk = vec![7; CHUNK];
                while stream.write_all(&chunk).await.is_ok() {}
            });
        }
    });
    let (events, mut ignored) = mpsc::channel(1024);
    let mut questions = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let Some(uid) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".json")) else { continue };
        let hello = Hello {
            version: hpk_api::VERSION,
            pod_uid: uid.to_owned(),
            job_id: "1".to_owned(),
            node: "c1".to_owned(),
            datapath: None,
            public_key: None,
            pod_ips: Vec::new(),
            outward: None,
            outpost: 0,
        };
        let (ask, asked) = mpsc::channel(1);
        questions.push(ask);
        let config = ClientConfig { credentials: path.clone(), hello, supervisor: supervisor.clone() };
        tokio::spawn(keep(config, events.clone(), asked, None, CancellationToken::new()));
    }
    // Until the kubelet's end kills this process.
    while ignored.recv().await.is_some() {}
}
