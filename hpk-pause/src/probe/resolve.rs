//! Host names of probes, which are rare: most probe the pod's address. A small resolver of our own, because a
//! static binary has no name service switch: addresses, /etc/hosts, then one question per name server for A records.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::net::UdpSocket;

/// One name server has so long; the probe's own time limit ends it before, as a rule.
const PATIENCE: Duration = Duration::from_secs(5);

/// Addresses of a host; the error is Go's text after `dial tcp: `.
pub(super) async fn host(name: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(ip) = name.parse() {
        return Ok(vec![ip]);
    }
    let mut addresses = from_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), name);
    if addresses.is_empty() && name.eq_ignore_ascii_case("localhost") {
        addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    if !addresses.is_empty() {
        return Ok(addresses);
    }
    let config = read_config(Path::new("/etc/resolv.conf"));
    let mut problem = format!("lookup {name}: no such host");
    for server in &config.servers {
        for candidate in config.candidates(name) {
            match ask(*server, &candidate).await {
                Ok(found) if found.is_empty() => problem = format!("lookup {name} on {server}: no such host"),
                Ok(found) => return Ok(found),
                Err(error) => {
                    problem = format!("lookup {name} on {server}: {error}");
                    break;
                }
            }
        }
    }
    Err(problem)
}

fn from_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        if let Some(ip) = words.next().and_then(|w| w.parse().ok())
            && words.any(|w| w.eq_ignore_ascii_case(name))
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Config {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Config {
    fn candidates(&self, name: &str) -> Vec<String> {
        let plain = name.trim_end_matches('.').to_owned();
        if name.ends_with('.') {
            return vec![plain];
        }
        let searched = self.search.iter().map(|domain| format!("{plain}.{domain}"));
        if plain.matches('.').count() >= self.ndots {
            std::iter::once(plain.clone()).chain(searched).collect()
        } else {
            searched.chain([plain.clone()]).collect()
        }
    }
}

fn read_config(path: &Path) -> Config {
    parse_config(&std::fs::read_to_string(path).unwrap_or_default())
}

fn parse_config(text: &str) -> Config {
    let mut config = Config { ndots: 1, ..Config::default() };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config
                .servers
                .extend(words.next().and_then(|w| w.parse::<IpAddr>().ok()).map(|ip| SocketAddr::from((ip, 53)))),
            Some("search" | "domain") => config.search = words.map(|w| w.trim_end_matches('.').to_owned()).collect(),
            Some("options") => {
                for ndots in words.filter_map(|w| w.strip_prefix("ndots:")?.parse().ok()) {
                    config.ndots = ndots;
                }
            }
            _ => {}
        }
    }
    config
}

async fn ask(server: SocketAddr, name: &str) -> Result<Vec<IpAddr>, String> {
    let local: IpAddr = if server.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let exchange = async {
        let socket = UdpSocket::bind((local, 0)).await?;
        socket.connect(server).await?;
        // A new socket for each question: its port is what an impostor would have to guess.
        let id = socket.local_addr()?.port();
        socket.send(&question(id, name)).await?;
        let mut answer = [0; 1500];
        loop {
            let length = socket.recv(&mut answer).await?;
            if let Some(found) = addresses(id, &answer[..length]) {
                return std::io::Result::Ok(found);
            }
        }
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(super::text::errno(&error)),
        Err(_) => Err("i/o timeout".to_owned()),
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = Vec::with_capacity(32 + name.len());
    message.extend_from_slice(&id.to_be_bytes());
    // Recursion desired; one question.
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend_from_slice(label);
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// A records of an answer; None when it is not the answer to our question.
pub(super) fn addresses(id: u16, message: &[u8]) -> Option<Vec<IpAddr>> {
    let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    if word(0)? != id || message.get(2)? & 0x80 == 0 {
        return None;
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = skip_name(message, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..word(6)? {
        at = skip_name(message, at)?;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if let (1, [a, b, c, d]) = (kind, data) {
            found.push(IpAddr::from([*a, *b, *c, *d]));
        }
        at += 10 + length;
    }
    Some(found)
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_file() {
        let text = "127.0.0.1\tlocalhost\n::1 localhost ip6-localhost # x\n10.0.0.9 Web.example web\n";
        assert_eq!(from_hosts(text, "localhost"), ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(from_hosts(text, "web.EXAMPLE"), ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert!(from_hosts(text, "x").is_empty());
    }

    #[test]
    fn search_list() {
        let config = parse_config(
            "nameserver 10.96.0.10\nsearch default.svc.cluster.local cluster.local\noptions ndots:2 edns0\n",
        );
        assert_eq!(config.servers, ["10.96.0.10:53".parse().unwrap()]);
        assert_eq!(config.candidates("web"), ["web.default.svc.cluster.local", "web.cluster.local", "web"]);
        assert_eq!(config.candidates("a.b.c"), ["a.b.c", "a.b.c.default.svc.cluster.local", "a.b.c.cluster.local"]);
        assert_eq!(config.candidates("web."), ["web"]);
    }

    #[tokio::test]
    async fn asks_a_server() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let answering = tokio::spawn(async move {
            let mut question = [0; 512];
            let (length, peer) = server.recv_from(&mut question).await.unwrap();
            let mut answer = question[..length].to_vec();
            answer[2] |= 0x80;
            answer[7] = 1;
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 1, 2, 3]);
            server.send_to(b"xx", peer).await.unwrap();
            server.send_to(&answer, peer).await.unwrap();
        });
        assert_eq!(ask(address, "web.example").await.unwrap(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        answering.await.unwrap();
    }

    proptest! {
        #[test]
        fn total_on_any_answer(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let id = u16::from_be_bytes([bytes.first().copied().unwrap_or(0), bytes.get(1).copied().unwrap_or(0)]);
            let _ = addresses(id, &bytes);
        }
    }
}
