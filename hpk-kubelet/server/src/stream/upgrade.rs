//! Which streaming protocol a request asks for, and the 101 that grants it.

use super::status::ErrorFormat;
use crate::respond::{Body, full, text};
use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const WS_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WS_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WS_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// WebSocket subprotocol that carries SPDY port-forward frames (KEP-4006).
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// SPDY stream protocol of port-forward.
const PORT_FORWARD: &str = "portforward.k8s.io";

/// A WebSocket subprotocol of the channel family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channels {
    /// 1 (also for no subprotocol at all), 4 or 5.
    pub(crate) version: u8,
    /// Payloads are base64 in text messages.
    pub(crate) base64: bool,
}

impl Channels {
    pub(crate) fn error_format(self) -> ErrorFormat {
        if self.version >= 4 { ErrorFormat::Status } else { ErrorFormat::Text }
    }
}

/// A SPDY remote-command protocol, v1 to v4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RemoteVersion(pub(crate) u8);

impl RemoteVersion {
    pub(crate) fn error_format(self) -> ErrorFormat {
        if self.0 >= 4 { ErrorFormat::Status } else { ErrorFormat::Text }
    }

    pub(crate) fn has_resize(self) -> bool {
        self.0 >= 3
    }
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    WebSocket(Channels),
    /// Port-forward only: SPDY inside WebSocket messages.
    WebSocketTunnel,
    /// Remote commands.
    Spdy(RemoteVersion),
    /// Port-forward.
    SpdyForward,
}

/// Why the connection cannot be upgraded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No upgrade was asked for.
    NoUpgrade,
    /// None of the client's protocols is known here; these are.
    NoProtocol { theirs: String, ours: &'static [&'static str] },
    /// The handshake is incomplete.
    Handshake(&'static str),
}

impl Refused {
    pub(crate) fn response(&self) -> Response<Body> {
        match self {
            Self::NoUpgrade => text(StatusCode::BAD_REQUEST, "you must specify an upgrade: websocket or SPDY/3.1\n"),
            Self::NoProtocol { theirs, ours } => text(
                StatusCode::FORBIDDEN,
                format!(
                    "unable to upgrade: unable to negotiate protocol: client supports [{theirs}], server accepts {ours:?}"
                ),
            ),
            Self::Handshake(what) => text(StatusCode::BAD_REQUEST, format!("{what}\n")),
        }
    }
}

const REMOTE_WS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "base64.v5.channel.k8s.io",
    "base64.v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
const FORWARD_WS: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "base64.v4.channel.k8s.io"];
const REMOTE_SPDY: &[&str] = &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// For exec and attach.
pub(crate) fn remote(headers: &HeaderMap) -> Result<(Protocol, Response<Body>), Refused> {
    if is_upgrade_to(headers, "websocket") {
        let theirs = list(headers, &WS_PROTOCOL);
        // The client's order is its preference.
        let chosen = theirs.iter().find(|p| REMOTE_WS.contains(&p.as_str())).cloned();
        if chosen.is_none() && !theirs.is_empty() {
            return Err(Refused::NoProtocol { theirs: theirs.join(", "), ours: REMOTE_WS });
        }
        let channels = channels_of(chosen.as_deref().unwrap_or(""));
        return Ok((Protocol::WebSocket(channels), switch_websocket(headers, chosen.as_deref())?));
    }
    if is_upgrade_to(headers, "spdy/3.1") {
        let theirs = list(headers, &STREAM_PROTOCOL);
        let chosen = match theirs.iter().find(|p| REMOTE_SPDY.contains(&p.as_str())) {
            Some(chosen) => chosen.as_str(),
            // Clients before the negotiation speak the first version.
            None if theirs.is_empty() => "channel.k8s.io",
            None => return Err(Refused::NoProtocol { theirs: theirs.join(", "), ours: REMOTE_SPDY }),
        };
        let version = match chosen.as_bytes() {
            [b'v', digit @ b'1'..=b'9', b'.', ..] => digit - b'0',
            _ => 1,
        };
        let name = (!theirs.is_empty()).then_some(chosen);
        return Ok((Protocol::Spdy(RemoteVersion(version)), switch_spdy(name)));
    }
    Err(Refused::NoUpgrade)
}

/// For port-forward.
pub(crate) fn forward(headers: &HeaderMap) -> Result<(Protocol, Response<Body>), Refused> {
    if is_upgrade_to(headers, "websocket") {
        let theirs = list(headers, &WS_PROTOCOL);
        let chosen = theirs.iter().find(|p| FORWARD_WS.contains(&p.as_str())).cloned();
        if chosen.is_none() && !theirs.is_empty() {
            return Err(Refused::NoProtocol { theirs: theirs.join(", "), ours: FORWARD_WS });
        }
        let response = switch_websocket(headers, chosen.as_deref())?;
        let protocol = match chosen.as_deref() {
            Some(TUNNEL) => Protocol::WebSocketTunnel,
            other => Protocol::WebSocket(channels_of(other.unwrap_or(""))),
        };
        return Ok((protocol, response));
    }
    if is_upgrade_to(headers, "spdy/3.1") {
        let theirs = list(headers, &STREAM_PROTOCOL);
        if !theirs.is_empty() && !theirs.iter().any(|p| p == PORT_FORWARD) {
            return Err(Refused::NoProtocol { theirs: theirs.join(", "), ours: &[PORT_FORWARD] });
        }
        return Ok((Protocol::SpdyForward, switch_spdy(Some(PORT_FORWARD))));
    }
    Err(Refused::NoUpgrade)
}

/// Whether the client asks for a WebSocket (its port-forward names its ports in the query).
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade_to(headers, "websocket")
}

fn channels_of(name: &str) -> Channels {
    Channels {
        version: if name.contains("v5.") {
            5
        } else if name.contains("v4.") {
            4
        } else {
            1
        },
        base64: name.contains("base64"),
    }
}

fn is_upgrade_to(headers: &HeaderMap, protocol: &str) -> bool {
    let has = |name: HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
    };
    has(CONNECTION, "upgrade") && has(UPGRADE, protocol)
}

/// Values of a header that may be repeated or comma-separated.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|v| v.trim().to_owned())
        .filter(|v| !v.is_empty())
        .collect()
}

fn switching(upgrade: &'static str) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(upgrade));
    response
}

fn switch_spdy(protocol: Option<&str>) -> Response<Body> {
    let mut response = switching("SPDY/3.1");
    if let Some(value) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
        response.headers_mut().insert(STREAM_PROTOCOL, value);
    }
    response
}

fn switch_websocket(headers: &HeaderMap, protocol: Option<&str>) -> Result<Response<Body>, Refused> {
    let version = headers.get("sec-websocket-version").and_then(|v| v.to_str().ok());
    if version != Some("13") {
        return Err(Refused::Handshake("Sec-WebSocket-Version must be 13"));
    }
    let key = headers.get(&WS_KEY).ok_or(Refused::Handshake("Sec-WebSocket-Key is missing"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Refused::Handshake("Sec-WebSocket-Key is malformed"))?;
    let mut response = switching("websocket");
    response.headers_mut().insert(WS_ACCEPT, accept);
    if let Some(value) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
        response.headers_mut().insert(WS_PROTOCOL, value);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    fn ws(protocols: &'static str) -> HeaderMap {
        headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocols),
        ])
    }

    #[test]
    fn websockets_agree_on_the_clients_first_known_protocol() {
        let (protocol, response) = remote(&ws("v9.channel.k8s.io, v5.channel.k8s.io,v4.channel.k8s.io")).unwrap();
        assert_eq!(protocol, Protocol::WebSocket(Channels { version: 5, base64: false }));
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
        // Example of RFC 6455, section 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (protocol, _) = remote(&ws("base64.channel.k8s.io")).unwrap();
        assert_eq!(protocol, Protocol::WebSocket(Channels { version: 1, base64: true }));
        assert!(matches!(remote(&ws("chat")), Err(Refused::NoProtocol { .. })));
        assert!(matches!(forward(&ws("SPDY/3.1+portforward.k8s.io")).unwrap().0, Protocol::WebSocketTunnel));
    }

    #[test]
    fn spdy_agrees_on_a_version() {
        let spdy = |versions: &'static str| {
            headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", versions)])
        };
        let (protocol, response) = remote(&spdy("v4.channel.k8s.io, v3.channel.k8s.io")).unwrap();
        assert_eq!(protocol, Protocol::Spdy(RemoteVersion(4)));
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(remote(&spdy("channel.k8s.io")).unwrap().0, Protocol::Spdy(RemoteVersion(1)));
        assert_eq!(forward(&spdy("portforward.k8s.io")).unwrap().0, Protocol::SpdyForward);
        assert!(matches!(forward(&spdy("v4.channel.k8s.io")), Err(Refused::NoProtocol { .. })));
        assert_eq!(remote(&HeaderMap::new()).err(), Some(Refused::NoUpgrade));
    }
}
