//! The request of an httpGet: address and headers, as Go's `net/http` writes them.

use super::ProbeContext;
use super::url::Url;
use hpk_api::probe::Handler;

pub(super) struct Request {
    pub(super) url: Url,
    /// Host header when it is not the URL's.
    pub(super) host: Option<String>,
    /// Canonical names, sorted, as Go writes them.
    pub(super) headers: Vec<(String, String)>,
}

impl Request {
    pub(super) fn new(handler: &Handler, context: &ProbeContext, purpose: &str) -> Option<Self> {
        let Handler::HttpGet { scheme, host, port, path, headers } = handler else { return None };
        let host = host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| context.pod_ip.to_string());
        let url = Url::new(scheme.eq_ignore_ascii_case("https"), &host, *port, path);
        let mut headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| (canonical(name), clean(value))).collect();
        let has = |headers: &[(String, String)], name: &str| headers.iter().any(|(n, _)| n == name);
        if !has(&headers, "User-Agent") {
            headers.push(("User-Agent".to_owned(), format!("kube-{purpose}/{}", context.kube_version)));
        }
        if !has(&headers, "Accept") {
            headers.push(("Accept".to_owned(), "*/*".to_owned()));
        }
        // Set to nothing means: leave it out.
        for name in ["Accept", "User-Agent"] {
            if headers.iter().find(|(n, _)| n == name).is_some_and(|(_, value)| value.is_empty()) {
                headers.retain(|(n, _)| n != name);
            }
        }
        let host = headers.iter().find(|(n, _)| n == "Host").map(|(_, value)| value.clone()).filter(|h| !h.is_empty());
        // These are the client's own to write.
        headers.retain(|(n, _)| {
            !matches!(n.as_str(), "Host" | "Content-Length" | "Transfer-Encoding" | "Trailer" | "Connection")
        });
        headers.sort_by(|a, b| a.0.cmp(&b.0));
        Some(Self { url, host, headers })
    }

    /// What the server is asked as.
    pub(super) fn authority(&self) -> String {
        self.host.clone().unwrap_or_else(|| self.url.authority())
    }

    /// In HTTP/1.1.
    pub(super) fn encode(&self) -> Vec<u8> {
        let host = self.authority();
        let mut text = format!("GET {} HTTP/1.1\r\nHost: {host}\r\n", self.url.target());
        // Go writes the User-Agent first and takes only its first value.
        if let Some((name, value)) = self.headers.iter().find(|(n, _)| n == "User-Agent") {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        for (name, value) in self.headers.iter().filter(|(n, _)| n != "User-Agent") {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("Connection: close\r\n\r\n");
        text.into_bytes()
    }
}

/// Go's canonical form: `x-my-header` becomes `X-My-Header`.
fn canonical(name: &str) -> String {
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
        return clean(name);
    }
    let mut upper = true;
    name.chars()
        .map(|c| {
            let c = if upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            upper = c == '-';
            c
        })
        .collect()
}

/// A header cannot bring in another one.
fn clean(text: &str) -> String {
    text.replace(['\r', '\n'], " ").trim().to_owned()
}
