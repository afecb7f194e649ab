//! System errors in Go's words, which Kubernetes users know from events.

use nix::errno::Errno;
use std::io;

/// `connection refused`: Go writes errors as strerror(3) does, beginning with a small letter.
#[must_use]
pub(crate) fn errno(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::TimedOut {
        return "connection timed out".to_owned();
    }
    let Some(code) = error.raw_os_error() else { return error.to_string() };
    let text = Errno::from_raw(code).desc();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// `10.0.0.1:80`, `[fd00::1]:80`: Go's `net.JoinHostPort`.
#[must_use]
pub(crate) fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_says_it() {
        for (code, text) in [
            (Errno::ECONNREFUSED, "connection refused"),
            (Errno::EHOSTUNREACH, "no route to host"),
            (Errno::ENETUNREACH, "network is unreachable"),
            (Errno::ECONNRESET, "connection reset by peer"),
            (Errno::ETIMEDOUT, "connection timed out"),
        ] {
            assert_eq!(errno(&io::Error::from_raw_os_error(code as i32)), text);
        }
        assert_eq!(join_host_port("fd00::1", 80), "[fd00::1]:80");
    }
}
