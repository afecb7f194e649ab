//! Waiting with a deadline.

use crate::command::sx_command;
use serde_json::Value;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Runs `kubectl <args>`, a watch with `-o json`, and gives the first object that `accept` takes, or `None`
/// when there was none before the deadline or the watch ended.
pub fn until(args: &[&str], deadline: Duration, accept: impl Fn(&Value) -> bool) -> Option<Value> {
    let end = Instant::now() + deadline;
    // A client that is killed leaves its own child in the node's PID namespace to the broken pipe; the
    // request's own time-out makes sure of its end.
    let timeout = format!("--request-timeout={}s", deadline.as_secs().max(1));
    let command: Vec<&str> = ["kubectl"].into_iter().chain(args.iter().copied()).chain([timeout.as_str()]).collect();
    let mut child = match sx_command("login", Some("alice"), &command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => panic!("kubectl {}: {error}", args.join(" ")),
    };
    let stdout = child.stdout.take()?;
    let (sender, objects) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for object in serde_json::Deserializer::from_reader(std::io::BufReader::new(stdout)).into_iter::<Value>() {
            let Ok(object) = object else { break };
            if sender.send(object).is_err() {
                break;
            }
        }
    });
    let mut found = None;
    while let Ok(object) = objects.recv_timeout(end.saturating_duration_since(Instant::now())) {
        // The first answer of `get -w` on several objects may come as one list.
        let items = match object["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![object],
        };
        found = items.into_iter().find(|item| accept(item));
        if found.is_some() {
            break;
        }
    }
    drop(objects);
    // The kill closes the pipe's other end, so the reader ends too.
    let _ = child.kill();
    let _ = child.wait();
    drop(reader);
    found
}

/// Tries `check` until it gives a value, or fails the case with `what` after `deadline`. For Slurm and
/// processes, which offer no watch.
#[track_caller]
pub fn eventually<T>(what: &str, deadline: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
