//! grpc probes: one call of `grpc.health.v1.Health/Check` over a small HTTP/2 of our own, with the texts that
//! upstream's prober (grpc-go) gives.

use super::h2::Call;
use super::{Outcome, ProbeContext, connect, text::join_host_port};
use hpk_api::go_duration;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// grpc-go's first back-off between connection attempts: within the probe's time limit it goes on trying.
const RECONNECT: Duration = Duration::from_secs(1);

pub(super) async fn probe(port: u16, service: &str, timeout: Duration, context: &ProbeContext) -> Outcome {
    let host = context.pod_ip.to_string();
    let address = join_host_port(&host, port);
    let deadline = tokio::time::Instant::now() + timeout;
    let Ok((mut tcp, mut call)) = tokio::time::timeout_at(deadline, ready(&host, port)).await else {
        return Outcome::Failure(format!(
            "timeout: failed to connect service {address:?} within {}: context deadline exceeded",
            go_duration::format(timeout)
        ));
    };
    call.request(
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", &address),
            ("content-type", "application/grpc"),
            ("user-agent", &format!("kube-probe/{}", context.kube_version)),
            ("te", "trailers"),
        ],
        &message(service),
    );
    match tokio::time::timeout_at(deadline, finish(&mut tcp, &mut call)).await {
        Ok(Ok(())) => judge(&call),
        Ok(Err(text)) => failed("Unavailable", &text),
        Err(_) => {
            Outcome::Failure(format!("timeout: health rpc did not complete within {}", go_duration::format(timeout)))
        }
    }
}

/// Connects until a server answers in HTTP/2.
async fn ready(host: &str, port: u16) -> (TcpStream, Call) {
    loop {
        if let Ok(mut tcp) = connect(host, port).await {
            let mut call = Call::new();
            while !call.ready {
                if exchange(&mut tcp, &mut call).await.is_err() {
                    break;
                }
            }
            if call.ready {
                return (tcp, call);
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn finish(tcp: &mut TcpStream, call: &mut Call) -> Result<(), String> {
    while !call.done {
        exchange(tcp, call).await?;
    }
    Ok(())
}

/// Sends what is to be sent, then takes what comes.
async fn exchange(tcp: &mut TcpStream, call: &mut Call) -> Result<(), String> {
    let broken = |error: std::io::Error| format!("connection error: {}", super::text::errno(&error));
    tcp.write_all(&call.take_output()).await.map_err(broken)?;
    let mut buffer = [0; 4096];
    match tcp.read(&mut buffer).await.map_err(broken)? {
        0 => Err("error reading from server: EOF".to_owned()),
        length => call.receive(&buffer[..length]).map_err(|error| error.to_string()),
    }
}

/// HealthCheckRequest{service = 1} in gRPC's framing.
fn message(service: &str) -> Vec<u8> {
    let mut content = Vec::new();
    if !service.is_empty() {
        content.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            content.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        content.push(u8::try_from(length).unwrap_or(0));
        content.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(content.len()).unwrap_or(0).to_be_bytes();
    [&[0], &length[..], &content].concat()
}

fn judge(call: &Call) -> Outcome {
    let status: Option<u32> = call.header("grpc-status").and_then(|s| s.parse().ok());
    let said = decode_percent(call.header("grpc-message").unwrap_or_default());
    match status {
        Some(0) => match serving(&call.content) {
            Some(1) => Outcome::Success,
            Some(status) => Outcome::Failure(format!("service unhealthy (responded with {:?})", status_name(status))),
            None => {
                failed("Internal", "cardinality violation: received no response message from non-server-streaming RPC")
            }
        },
        Some(12) => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {said}"
        )),
        Some(code) => failed(code_name(code), &said),
        None => {
            let status = call.header(":status").unwrap_or("none");
            failed("Unknown", &format!("unexpected HTTP status code received from server: {status}"))
        }
    }
}

fn failed(code: &str, said: &str) -> Outcome {
    Outcome::Failure(format!("error: health rpc probe failed: rpc error: code = {code} desc = {said}"))
}

/// HealthCheckResponse.status; 0 when the message leaves it out, None without a whole message.
fn serving(content: &[u8]) -> Option<u64> {
    let [0, a, b, c, d, rest @ ..] = content else { return None };
    let mut message = rest.get(..u32::from_be_bytes([*a, *b, *c, *d]) as usize)?;
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            1 => message = message.get(8..)?,
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn status_name(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        1 => "SERVING".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

/// grpc-go's names of codes.
fn code_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).copied().unwrap_or("Unknown")
}

/// grpc-message is percent-encoded.
fn decode_percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|h| std::str::from_utf8(h).ok());
        if let Some(value) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            out.push(value);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    #[test]
    fn messages() {
        assert_eq!(message(""), [0, 0, 0, 0, 0]);
        assert_eq!(message("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(message(&"x".repeat(300)).len(), 5 + 3 + 300);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(serving(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving(&[]), None);
        assert_eq!(decode_percent("a%20b%zz"), "a b%zz");
    }

    #[test]
    fn outcomes() {
        let judged = |headers: &[(&str, &str)], content: &[u8]| {
            let mut call = Call::new();
            call.headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            call.content = content.to_vec();
            judge(&call)
        };
        let failure = |text: &str| Outcome::Failure(text.to_owned());
        assert_eq!(judged(&[("grpc-status", "0")], &[0, 0, 0, 0, 2, 8, 1]), Outcome::Success);
        assert_eq!(
            judged(&[("grpc-status", "0")], &[0, 0, 0, 0, 2, 8, 2]),
            failure("service unhealthy (responded with \"NOT_SERVING\")")
        );
        assert_eq!(
            judged(&[("grpc-status", "5"), ("grpc-message", "unknown service")], &[]),
            failure("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")
        );
        assert_eq!(
            judged(&[("grpc-status", "12"), ("grpc-message", "unknown service grpc.health.v1.Health")], &[]),
            failure(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown service grpc.health.v1.Health"
            )
        );
        assert_eq!(
            judged(&[(":status", "404")], &[]),
            failure(
                "error: health rpc probe failed: rpc error: code = Unknown desc = unexpected HTTP status code received from server: 404"
            )
        );
    }

    #[tokio::test]
    async fn no_server_is_a_time_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let context = ProbeContext { pod_ip: IpAddr::from([127, 0, 0, 1]), kube_version: "1.37".to_owned() };
        let text =
            format!("timeout: failed to connect service \"127.0.0.1:{port}\" within 50ms: context deadline exceeded");
        let limit = Duration::from_millis(50);
        assert_eq!(probe(port, "", limit, &context).await, Outcome::Failure(text.clone()));
        drop(listener);
        assert_eq!(probe(port, "", limit, &context).await, Outcome::Failure(text));
    }

    proptest! {
        #[test]
        fn total(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = serving(&bytes);
        }
    }
}
