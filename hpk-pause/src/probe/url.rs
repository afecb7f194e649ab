//! The little of URLs that probes need: making them as upstream's `formatURL` does, and following redirects.

use super::text::join_host_port;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// Without brackets.
    pub(super) host: String,
    /// None: the scheme's own.
    pub(super) port: Option<u16>,
    /// Path and query, escaped; begins with `/` unless empty.
    pub(super) path: String,
}

impl Url {
    pub(super) fn new(https: bool, host: &str, port: u16, path: &str) -> Self {
        let path = path.split_once('#').map_or(path, |(path, _)| path);
        let path = if path.is_empty() || path.starts_with(['/', '?']) { path.to_owned() } else { format!("/{path}") };
        Self { https, host: host.to_owned(), port: Some(port), path: escape(&path) }
    }

    pub(super) fn port(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
    }

    /// `host:port` as in the Host header; the port only when it was given.
    pub(super) fn authority(&self) -> String {
        match self.port {
            Some(port) => join_host_port(&self.host, port),
            None if self.host.contains(':') => format!("[{}]", self.host),
            None => self.host.clone(),
        }
    }

    /// What stands in the request line.
    pub(super) fn target(&self) -> String {
        if self.path.starts_with('/') { self.path.clone() } else { format!("/{}", self.path) }
    }

    /// Resolves a Location header against this.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        let location = location.split_once('#').map_or(location, |(location, _)| location);
        let (https, rest) = if let Some(rest) = strip_scheme(location, "http://") {
            (false, rest)
        } else if let Some(rest) = strip_scheme(location, "https://") {
            (true, rest)
        } else if let Some(rest) = location.strip_prefix("//") {
            (self.https, rest)
        } else if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
            // Another scheme.
            return None;
        } else {
            return Some(Self { path: self.join_path(location), ..self.clone() });
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']')?;
                (host, after.strip_prefix(':'))
            }
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = port.filter(|p| !p.is_empty()).map(str::parse).transpose().ok()?;
        (!host.is_empty()).then(|| Self { https, host: host.to_owned(), port, path: escape(path) })
    }

    fn join_path(&self, location: &str) -> String {
        if location.starts_with('/') {
            return escape(location);
        }
        let path = self.path.split_once('?').map_or(self.path.as_str(), |(path, _)| path);
        if location.starts_with('?') {
            return escape(&format!("{path}{location}"));
        }
        let folder = path.rfind('/').map_or("/", |slash| &path[..=slash]);
        let (relative, query) = location.split_once('?').map_or((location, None), |(p, q)| (p, Some(q)));
        let mut parts: Vec<&str> = Vec::new();
        let whole = format!("{folder}{relative}");
        let (dirs, last) =
            whole.trim_start_matches('/').rsplit_once('/').map_or(("", whole.trim_start_matches('/')), |(d, l)| (d, l));
        for part in dirs.split('/').chain([last]) {
            match part {
                "." | "" => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let slash = if matches!(last, "" | "." | "..") && !parts.is_empty() { "/" } else { "" };
        let query = query.map_or_else(String::new, |q| format!("?{q}"));
        escape(&format!("/{}{slash}{query}", parts.join("/")))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Escapes what may not stand in a request line; what is escaped already stays.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_as_upstream_makes_them() {
        for (host, path, url, target) in [
            ("10.0.0.1", "/healthz?a=b", "http://10.0.0.1:80/healthz?a=b", "/healthz?a=b"),
            ("fd00::1", "/", "http://[fd00::1]:80/", "/"),
            ("h", "", "http://h:80", "/"),
            ("h", "live", "http://h:80/live", "/live"),
            ("h", "/a b%20c#frag", "http://h:80/a%20b%20c", "/a%20b%20c"),
            ("h", "?x=1", "http://h:80?x=1", "/?x=1"),
        ] {
            let made = Url::new(false, host, 80, path);
            assert_eq!((made.to_string().as_str(), made.target().as_str()), (url, target));
        }
    }

    #[test]
    fn redirects() {
        let from = Url::new(true, "10.0.0.1", 8443, "/a/b?q=1");
        for (location, expected) in [
            ("/new", Some("https://10.0.0.1:8443/new")),
            ("c?x=2", Some("https://10.0.0.1:8443/a/c?x=2")),
            ("../c/", Some("https://10.0.0.1:8443/c/")),
            ("?y", Some("https://10.0.0.1:8443/a/b?y")),
            ("http://example.com/x", Some("http://example.com/x")),
            ("HTTP://user@[::1]:81", Some("http://[::1]:81")),
            ("//other/", Some("https://other/")),
            ("ftp://x/", None),
            ("http://h:port/", None),
            ("http:///x", None),
        ] {
            assert_eq!(from.join(location).map(|u| u.to_string()).as_deref(), expected, "{location}");
        }
    }
}
