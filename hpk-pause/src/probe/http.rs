//! httpGet: a small HTTP/1.1 client that behaves and speaks as Go's `net/http` does in upstream's prober; in HTTP/2 where an
//! https server chooses it ([`http2`]).

use super::request::Request;
use super::response::{MAX_BODY, parse_head, read_body};
use super::tls::PLAIN_ANSWER;
use super::{HookDone, Outcome, ProbeContext, connect, http2, tls};
use hpk_api::probe::Handler;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of status line and headers.
const MAX_HEAD: usize = 64 << 10;
/// Requests in a chain of redirects.
const MAX_REQUESTS: usize = 10;

/// One httpGet as a probe.
pub(super) async fn probe(handler: &Handler, timeout: Duration, context: &ProbeContext) -> Outcome {
    let Some(mut request) = Request::new(handler, context, "probe") else {
        return Outcome::Unknown("not an httpGet handler".to_owned());
    };
    let mut stage = Stage::Headers;
    let result = tokio::time::timeout(timeout, follow(&mut request, &mut stage)).await;
    let failed = |text: &str| Outcome::Failure(format!("Get \"{}\": {text}", request.url));
    match result {
        Ok(Ok(response)) => match response.status {
            200..=299 => Outcome::Success,
            300..=399 => Outcome::Warning(format!(
                "Probe terminated redirects, Response body: {}",
                String::from_utf8_lossy(&response.body)
            )),
            status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        },
        Ok(Err(Failed::Request(text))) => failed(&text),
        Ok(Err(Failed::Body(text))) => Outcome::Unknown(text),
        Err(_) if stage == Stage::Headers => {
            failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
        }
        Err(_) => Outcome::Unknown(
            "context deadline exceeded (Client.Timeout or context cancellation while reading body)".to_owned(),
        ),
    }
}

/// One httpGet as a hook.
pub(super) async fn hook(handler: &Handler, context: &ProbeContext) -> Result<HookDone, String> {
    let mut request = Request::new(handler, context, "lifecycle").ok_or_else(|| "not an httpGet handler".to_owned())?;
    let mut done = HookDone::default();
    loop {
        match follow(&mut request, &mut Stage::Headers).await {
            // What the server says, and how its body ends, are of no consequence.
            Ok(_) | Err(Failed::Body(_)) => return Ok(done),
            Err(Failed::Request(text)) if text == PLAIN_ANSWER && done.http_fallback.is_none() => {
                done.http_fallback = Some(format!(
                    "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
                    request.url.authority()
                ));
                request.url.https = false;
                request.headers.retain(|(name, _)| name != "Authorization");
            }
            // The first error is the one that upstream reports.
            Err(Failed::Request(text)) => {
                let https = done.http_fallback.is_some();
                request.url.https |= https;
                return Err(format!("Get \"{}\": {}", request.url, if https { PLAIN_ANSWER } else { &text }));
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Headers,
    Body,
}

enum Failed {
    /// No answer; text after `Get "url": `.
    Request(String),
    /// The body broke off.
    Body(String),
}

#[derive(Debug)]
struct Response {
    status: u16,
    location: Option<String>,
    body: Vec<u8>,
}

/// Follows redirects to the same host name.
async fn follow(request: &mut Request, stage: &mut Stage) -> Result<Response, Failed> {
    let first = request.url.host.clone();
    for number in 1.. {
        *stage = Stage::Headers;
        let response = exchange(request, stage).await?;
        let location = match (response.status, &response.location) {
            (301 | 302 | 303 | 307 | 308, Some(location)) if !location.is_empty() => location.clone(),
            _ => return Ok(response),
        };
        let Some(next) = request.url.join(&location) else {
            return Err(Failed::Request(format!("failed to parse Location header {location:?}")));
        };
        if next.host != first {
            return Ok(response);
        }
        // An absolute address says itself which host is meant.
        if next.authority() != request.url.authority() {
            request.host = None;
        }
        request.url = next;
        if number >= MAX_REQUESTS {
            return Err(Failed::Request(format!("stopped after {MAX_REQUESTS} redirects")));
        }
    }
    Err(Failed::Request("no request was made".to_owned()))
}

async fn exchange(request: &Request, stage: &mut Stage) -> Result<Response, Failed> {
    let stream = connect(&request.url.host, request.url.port()).await.map_err(Failed::Request)?;
    if request.url.https {
        let stream = tls::connect(stream, &request.url.host).await.map_err(Failed::Request)?;
        // Boxed: an https exchange is rare, and its state is large.
        return match tls::speaks_http2(&stream) {
            true => Box::pin(talk_http2(stream, request, stage)).await,
            false => Box::pin(talk(stream, request, stage)).await,
        };
    }
    talk(stream, request, stage).await
}

async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &Request,
    stage: &mut Stage,
) -> Result<Response, Failed> {
    let broken = |error: std::io::Error| Failed::Request(super::text::errno(&error));
    stream.write_all(&request.encode()).await.map_err(broken)?;
    let mut buffer = Vec::with_capacity(2048);
    let (head, used) = loop {
        match parse_head(&buffer).map_err(Failed::Request)? {
            // 1xx are not answers yet.
            Some((head, used)) if (100..200).contains(&head.status) && head.status != 101 => drop(buffer.drain(..used)),
            Some(found) => break found,
            None if buffer.len() > MAX_HEAD => {
                return Err(Failed::Request(
                    "net/http: HTTP/1.x transport connection broken: too many header bytes".to_owned(),
                ));
            }
            None => {
                if stream.read_buf(&mut buffer).await.map_err(broken)? == 0 {
                    let text = if buffer.is_empty() { "EOF" } else { "unexpected EOF" };
                    return Err(Failed::Request(text.to_owned()));
                }
            }
        }
    };
    *stage = Stage::Body;
    buffer.drain(..used);
    let body = read_body(&mut stream, buffer, &head).await.map_err(Failed::Body)?;
    Ok(Response { status: head.status, location: head.location, body })
}

async fn talk_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &Request,
    stage: &mut Stage,
) -> Result<Response, Failed> {
    let mut exchange = http2::Exchange::begin(stream, request).await.map_err(Failed::Request)?;
    let status = exchange.status().await.map_err(Failed::Request)?;
    let location = exchange.header("location").map(str::to_owned);
    *stage = Stage::Body;
    let body = exchange.body(MAX_BODY).await.map_err(Failed::Body)?;
    Ok(Response { status, location, body })
}

#[cfg(test)]
mod tests {
    use super::super::response::{Chunked, find_end};
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;
    use tokio::net::TcpListener;

    fn context() -> ProbeContext {
        ProbeContext { pod_ip: IpAddr::from([127, 0, 0, 1]), kube_version: "1.37".to_owned() }
    }

    fn get(port: u16, path: &str, headers: &[(&str, &str)]) -> Handler {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Handler::HttpGet { scheme: "HTTP".to_owned(), host: None, port, path: path.to_owned(), headers }
    }

    /// A server that answers each request with what `answer` makes of it, then closes.
    async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while find_end(&request).is_none() && tcp.read_buf(&mut request).await.unwrap() > 0 {}
                let answer = answer(std::str::from_utf8(&request).unwrap());
                tcp.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        port
    }

    async fn run(handler: &Handler) -> Outcome {
        probe(handler, Duration::from_secs(1), &context()).await
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn status_codes_decide() {
        for (answer, outcome) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Outcome::Success),
            ("HTTP/1.0 204 No Content\r\n\r\n", Outcome::Success),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Outcome::Success),
            (
                "HTTP/1.1 500 Oh\r\nContent-Length: 4\r\n\r\nbody",
                Outcome::Failure("HTTP probe failed with statuscode: 500".to_owned()),
            ),
            ("HTTP/1.1 404 \r\n\r\n", Outcome::Failure("HTTP probe failed with statuscode: 404".to_owned())),
            (
                "HTTP/1.1 301 Moved\r\nContent-Length: 2\r\n\r\nhi",
                Outcome::Warning("Probe terminated redirects, Response body: hi".to_owned()),
            ),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
                Outcome::Warning("Probe terminated redirects, Response body: abcde".to_owned()),
            ),
        ] {
            let port = serve(move |_| answer.to_owned()).await;
            assert_eq!(run(&get(port, "/", &[])).await, outcome, "{answer}");
        }
    }

    #[tokio::test]
    async fn the_request_is_a_kubelets() {
        let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let port = serve(move |request| {
            sender.send(request.to_owned()).unwrap();
            ok("")
        })
        .await;
        run(&get(port, "/a?b=c", &[])).await;
        let expected = format!(
            "GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.37\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(requests.recv().await.unwrap(), expected);
        run(&get(
            port,
            "",
            &[("host", "x.example"), ("x-muffins", "1"), ("ACCEPT", ""), ("user-agent", "me/1"), ("X-Muffins", "2")],
        ))
        .await;
        let expected = "GET / HTTP/1.1\r\nHost: x.example\r\nUser-Agent: me/1\r\nX-Muffins: 1\r\nX-Muffins: 2\r\nConnection: close\r\n\r\n";
        assert_eq!(requests.recv().await.unwrap(), expected);
        run(&get(port, "/", &[("User-Agent", ""), ("X", "a\r\nEvil: 1")])).await;
        let expected = format!(
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\nX: a  Evil: 1\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(requests.recv().await.unwrap(), expected);
        hook(&get(port, "/stop", &[]), &context()).await.unwrap();
        assert!(requests.recv().await.unwrap().contains("User-Agent: kube-lifecycle/1.37\r\n"));
    }

    #[tokio::test]
    async fn redirects_stay_on_the_host_and_end() {
        let port = serve(|request| {
            if request.starts_with("GET /new ") {
                ok("")
            } else {
                "HTTP/1.1 302 Found\r\nLocation: /new\r\n\r\n".to_owned()
            }
        })
        .await;
        assert_eq!(run(&get(port, "/", &[])).await, Outcome::Success);
        let port = serve(|_| "HTTP/1.1 307 Again\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
        let text = format!("Get \"http://127.0.0.1:{port}/again\": stopped after 10 redirects");
        assert_eq!(run(&get(port, "/", &[])).await, Outcome::Failure(text));
    }

    #[tokio::test]
    async fn failures_speak_as_go_does() {
        let port = serve(|_| String::new()).await;
        assert_eq!(run(&get(port, "/", &[])).await, Outcome::Failure(format!("Get \"http://127.0.0.1:{port}/\": EOF")));
        let port = serve(|_| "SSH-2.0-x\r\n".to_owned()).await;
        let text = format!(
            "Get \"http://127.0.0.1:{port}/\": net/http: HTTP/1.x transport connection broken: malformed HTTP response \"SSH-2.0-x\""
        );
        assert_eq!(run(&get(port, "/", &[])).await, Outcome::Failure(text));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!(
            "Get \"http://127.0.0.1:{port}/x\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        );
        assert_eq!(probe(&get(port, "/x", &[]), Duration::from_millis(50), &context()).await, Outcome::Failure(text));
        drop(listener);
        let text = format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused");
        assert_eq!(run(&get(port, "/", &[])).await, Outcome::Failure(text));
    }

    #[tokio::test]
    async fn https_to_a_plain_server_falls_back_in_hooks_only() {
        let port =
            serve(
                |request| {
                    if request.starts_with("GET") { ok("") } else { "HTTP/1.0 400 Bad Request\r\n\r\n".to_owned() }
                },
            )
            .await;
        let Handler::HttpGet { port, path, headers, .. } = get(port, "/", &[]) else { unreachable!() };
        let handler = Handler::HttpGet { scheme: "HTTPS".to_owned(), host: None, port, path, headers };
        let text = format!("Get \"https://127.0.0.1:{port}/\": http: server gave HTTP response to HTTPS client");
        // The stand-in server waits for the end of a plain request, which never comes from TLS; answer early instead.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut tcp, _) = listener.accept().await.unwrap();
                let mut first = [0; 1];
                tcp.read_exact(&mut first).await.unwrap();
                let answer = if first == *b"G" { ok("") } else { "HTTP/1.0 400 Bad Request\r\n\r\n".to_owned() };
                tcp.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let change = |handler: &Handler, to: u16| match handler.clone() {
            Handler::HttpGet { scheme, host, path, headers, .. } => {
                Handler::HttpGet { scheme, host, port: to, path, headers }
            }
            other => other,
        };
        let text = text.replace(&port.to_string(), &plain.to_string());
        assert_eq!(run(&change(&handler, plain)).await, Outcome::Failure(text));
        let done = hook(&change(&handler, plain), &context()).await.unwrap();
        let event =
            format!("request to HTTPS lifecycle hook 127.0.0.1:{plain} got HTTP response, retry with HTTP succeeded");
        assert_eq!(done.http_fallback, Some(event));
    }

    /// A TLS server with a certificate that nobody vouches for.
    fn acceptor(alpn: &[&str]) -> tokio_rustls::TlsAcceptor {
        use rustls::pki_types::PrivateKeyDer;
        let own = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let mut config =
            rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![own.cert.der().clone()], key)
                .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config))
    }

    fn https(port: u16, path: &str) -> Handler {
        let (scheme, path) = ("HTTPS".to_owned(), path.to_owned());
        Handler::HttpGet { scheme, host: None, port, path, headers: Vec::new() }
    }

    #[tokio::test]
    async fn https_trusts_anyone() {
        let acceptor = acceptor(&[]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = acceptor.accept(tcp).await.unwrap();
            let mut request = Vec::new();
            while find_end(&request).is_none() && tls.read_buf(&mut request).await.unwrap() > 0 {}
            tls.write_all(b"HTTP/1.1 503 Not yet\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            tls.shutdown().await.unwrap();
        });
        let failed = Outcome::Failure("HTTP probe failed with statuscode: 503".to_owned());
        assert_eq!(run(&https(port, "/")).await, failed);
    }

    /// A server by the crate h2 that refuses HTTP/1.1.
    #[tokio::test]
    async fn servers_that_speak_http2_alone_are_probed() {
        let acceptor = acceptor(&["h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(acceptor.accept(tcp).await.unwrap()).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.headers()["user-agent"], "kube-probe/1.37");
                    let (status, location) = match request.uri().path() {
                        "/moved" => (302, "/up"),
                        "/up" => (200, ""),
                        _ => (503, ""),
                    };
                    let head = http::Response::builder().status(status).header("location", location);
                    let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    // More than a probe reads, and more than its window.
                    body.send_data(vec![b'x'; 100 << 10].into(), true).unwrap();
                }
            }
        });
        assert_eq!(run(&https(port, "/up")).await, Outcome::Success);
        assert_eq!(run(&https(port, "/moved")).await, Outcome::Success);
        let failed = Outcome::Failure("HTTP probe failed with statuscode: 503".to_owned());
        assert_eq!(run(&https(port, "/down")).await, failed);
    }

    proptest! {
        #[test]
        fn heads_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), http in any::<bool>()) {
            let bytes = if http { [b"HTTP/1.1 200 OK\r\n", &bytes[..], b"\r\n\r\n"].concat() } else { bytes };
            if let Ok(Some((_, used))) = parse_head(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }

        #[test]
        fn chunks_survive_any_split(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), cut in 1usize..20) {
            let mut wire = Vec::new();
            for part in &parts {
                wire.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                wire.extend_from_slice(part);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (mut chunked, mut body, mut done) = (Chunked::default(), Vec::new(), false);
            for piece in wire.chunks(cut) {
                done = done || chunked.feed(piece, &mut body).unwrap();
            }
            prop_assert!(done);
            prop_assert_eq!(body, parts.concat());
        }
    }
}
