//! The kubelet API from outside: TLS, who may do what, logs and exec.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod kubelet_debug;
mod site;

use futures::{SinkExt, StreamExt};
use hpk_api::frame::channel;
use serde_json::Value;
use site::{authority, leaf, site};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

#[tokio::test]
async fn strangers_are_refused_and_the_known_get_what_they_may() {
    let site = site().await;
    let stranger = || Some(leaf(&authority(), "root"));
    let proxy = || Some(leaf(&site.front_proxy, "front-proxy-client"));
    let as_root = "X-Remote-User: root\r\n";
    let metrics = "/apis/metrics.k8s.io/v1beta1/nodes";
    // An exec's command is in the address.
    let long = format!("GET /nope?command={}", "x".repeat(60 << 10));
    let longer = format!("GET /nope?command={}", "%0A".repeat(120_000));
    for (identity, request, headers, code, text) in [
        (None, "GET /pods", "", 401, "Unauthorized"),
        (stranger(), "GET /pods", "", 401, "Unauthorized"),
        (None, "GET /pods", "Authorization: Bearer bad\r\n", 401, "Unauthorized"),
        (
            None,
            "GET /pods",
            "Authorization: Bearer good\r\n",
            403,
            "Forbidden (user=reader, verb=get, resource=nodes, subresource(s)=[pods proxy])",
        ),
        (None, "GET /metrics", "Authorization: Bearer good\r\n", 200, "ours 1"),
        (site.user("root"), "GET /pods", "", 200, "PodList"),
        (site.user("root"), "POST /pods", "", 405, "allow: GET"),
        (site.user("root"), "GET /nope", "", 404, "404 page not found"),
        (site.user("root"), "GET /healthz", "", 200, "ok"),
        (site.user("root"), &long, "", 404, "404 page not found"),
        (site.user("root"), &longer, "", 404, "404 page not found"),
        // Nobody may name another user but the aggregator, and it on its own paths only.
        (site.user("reader"), "GET /pods", as_root, 403, "user=reader"),
        (proxy(), "GET /pods", as_root, 401, "Unauthorized"),
        (proxy(), &format!("GET {metrics}"), as_root, 200, "NodeMetricsList"),
        (proxy(), &format!("GET {metrics}"), "", 401, "Unauthorized"),
        (proxy(), &format!("GET {metrics}"), "X-Remote-User: reader\r\n", 403, "Forbidden"),
        (Some(leaf(&site.front_proxy, "other")), &format!("GET {metrics}"), as_root, 401, "Unauthorized"),
    ] {
        let (got, answer) = site.ask(identity, request, headers).await;
        assert!(got == code && answer.contains(text), "{request} {headers:?}: {answer}");
    }
}

/// More connections than may wait, each as far as a stranger comes: nothing said, half of a ClientHello, or TLS done and
/// a head that never ends.
#[tokio::test]
async fn a_crowd_of_strangers_keeps_nobody_out() {
    let site = site().await;
    let mut crowd = Vec::new();
    for n in 0..1000 {
        let mut stream = TcpStream::connect(site.address).await.unwrap();
        if n % 2 == 0 {
            // A TLS record that promises more than ever comes.
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        }
        crowd.push(stream);
    }
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = site.connect(None).await;
        stream.write_all(b"GET /pods HTTP/1.1\r\nHost: ").await.unwrap();
        slow.push(stream);
    }
    let began = std::time::Instant::now();
    let (code, _) = site.ask(site.user("root"), "GET /healthz", "").await;
    assert_eq!(code, 200);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "served at once: {:?}", began.elapsed());
    let mut left = 0;
    for stream in &mut crowd {
        let wait = std::time::Duration::from_millis(1);
        left += usize::from(tokio::time::timeout(wait, stream.read(&mut [0; 64])).await.is_err());
    }
    assert!(left <= 256, "{left} of them are still served");
    // Within the time for a handshake and a head all are shown out.
    let patience = std::time::Duration::from_secs(30);
    for stream in &mut crowd {
        let _ = tokio::time::timeout(patience, stream.read(&mut [0; 64])).await.expect("shown out");
    }
    for stream in &mut slow {
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await.expect("shown out");
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
}

#[tokio::test]
async fn a_refused_caller_does_not_keep_its_connection_and_a_known_one_does() {
    let site = site().await;
    for (identity, code, stays) in [(None, "401", false), (site.user("reader"), "403", true)] {
        let mut stream = site.connect(identity).await;
        let mut heads = Vec::new();
        for _ in 0..2 {
            if stream.write_all(b"GET /pods HTTP/1.1\r\nHost: localhost\r\n\r\n").await.is_err() {
                break;
            }
            let mut buffer = vec![0; 4096];
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => heads.push(String::from_utf8_lossy(&buffer[..n]).into_owned()),
                _ => break,
            }
        }
        assert!(heads[0].starts_with(&format!("HTTP/1.1 {code}")), "{heads:?}");
        assert_eq!(heads.len() == 2, stays, "{heads:?}");
    }
}

#[tokio::test]
async fn logs_come_through_the_supervisor() {
    let site = site().await;
    let (code, answer) = site.ask(site.user("root"), "GET /containerLogs/n/p/c?tailLines=2", "").await;
    assert!(code == 200 && answer.contains("one\n") && answer.contains("two\n"), "{answer}");
    for (path, code, text) in [
        ("/containerLogs/n/x/c", 404, "pod \"x\" does not exist"),
        ("/containerLogs/n/p/x", 404, "container \"x\" not found in pod \"p\""),
        ("/containerLogs/n/p/c?tailLines=x", 400, "Unable to decode query"),
        ("/containerLogs/n/p/c?limitBytes=0", 422, "Invalid request"),
        ("/containerLogs/n/p/c?previous=true", 400, "previous terminated container \"c\" in pod \"p\" not found"),
    ] {
        let (got, answer) = site.ask(site.user("root"), &format!("GET {path}"), "").await;
        assert!(got == code && answer.contains(text), "{path}: {answer}");
    }
}

#[tokio::test]
async fn exec_over_a_websocket_carries_input_output_and_the_exit_code() {
    let site = site().await;
    let mut stream = site.connect(site.user("root")).await;
    let request = "GET /exec/n/p/c?command=sh&command=-c&command=cat&input=1&output=1 HTTP/1.1\r\nHost: localhost\r\n\
        Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    // Byte by byte: what follows the head belongs to the WebSocket.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let mut ws = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let noise: Vec<u8> = (0..300_000u32).map(|i| i.to_le_bytes()[0]).collect();
    let mut message = vec![channel::STDIN];
    message.extend_from_slice(&noise);
    ws.send(Message::binary(message)).await.unwrap();
    ws.send(Message::binary(vec![channel::CLOSE, channel::STDIN])).await.unwrap();
    let (mut echoed, mut status) = (Vec::new(), Value::Null);
    while let Some(Ok(message)) = ws.next().await {
        match message {
            Message::Binary(bytes) => match bytes[0] {
                channel::STDOUT => echoed.extend_from_slice(&bytes[1..]),
                channel::ERROR => status = serde_json::from_slice(&bytes[1..]).unwrap(),
                other => panic!("channel {other}"),
            },
            Message::Close(_) => break,
            _ => {}
        }
    }
    assert!(echoed == noise, "{} bytes came back of {}", echoed.len(), noise.len());
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
}

#[tokio::test]
async fn exec_that_cannot_be_is_an_http_error() {
    let site = site().await;
    for (path, code, text) in [
        ("/exec/n/x/c?command=a&output=1", 404, "pod does not exist"),
        ("/exec/n/p/x?command=a&output=1", 500, "container not found (\"x\")"),
        ("/exec/n/p/c?command=a", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("/exec/n/p/c?command=a&output=1", 400, "upgrade"),
        ("/portForward/n/p/other-uid", 404, "pod not found"),
    ] {
        let (got, answer) = site.ask(site.user("root"), &format!("GET {path}"), "").await;
        assert!(got == code && answer.contains(text), "{path}: {answer}");
    }
}
