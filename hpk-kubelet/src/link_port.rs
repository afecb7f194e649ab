//! The port where pods' links come: the one that `hpk up` chose, and another while a stranger has that.
//!
//! ```text
//! wanted ── taken ─▶ the last one that served, else one near by ─▶ pods are told (link.json) ─▶ wanted again, every 5 s
//!    └─ free: that ◀──────────────────────────────────────────────────── free again: both serve ──┘
//! ```

use hpk_link::server::LinkServer;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;

/// Between two tries to have the wanted port.
const AGAIN: Duration = Duration::from_secs(5);
/// How far from the wanted port others begin: nearer ones are those of the control plane's other parts.
const APART: u16 = 16;
/// How many of them are tried before any port will do.
const NEAR: u16 = 64;

/// No links can come.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// The address is another machine's, or nobody's.
    #[error("cannot listen for links: {0} is no address of this machine (any more): hpk down, then hpk up")]
    NotOurs(SocketAddr),
    #[error("cannot listen for links on {at}")]
    Io {
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Another program has the wanted port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "another program has port {} of {}, where pods' links come: {} serves instead, and running pods are told. If compute \
     nodes may reach only certain ports of this node, end that program",
    wanted.port(), wanted.ip(), used.port()
)]
pub(crate) struct Taken {
    /// The port that was decided.
    pub wanted: SocketAddr,
    /// The one that serves.
    pub used: SocketAddr,
}

/// Listens on `wanted` or, when another program has it, somewhere else; `last`: where links came before.
///
/// # Errors
/// No port of that address can be had.
pub(crate) fn open(
    links: &LinkServer,
    wanted: SocketAddr,
    last: Option<SocketAddr>,
) -> Result<Option<Taken>, ListenError> {
    for at in std::iter::once(wanted).chain(others(wanted, last)) {
        let tried = if at == wanted { beside(at) } else { alone(at) };
        match tried {
            Ok(listener) => {
                let used = listener.local_addr().map_err(|source| ListenError::Io { at, source })?;
                links.listen(listener);
                links.advertise(used);
                return Ok((used != wanted).then_some(Taken { wanted, used }));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return Err(ListenError::NotOurs(at)),
            Err(source) => return Err(ListenError::Io { at, source }),
        }
    }
    Err(ListenError::Io { at: wanted, source: io::ErrorKind::AddrInUse.into() })
}

/// Beside the control plane's supervisor, which holds the wanted port if it could have it.
fn beside(at: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::from_std(hpk_sys::ports::listen_beside(at)?)
}

/// Where no other program of this user is either.
fn alone(at: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Where else, in this order.
fn others(wanted: SocketAddr, last: Option<SocketAddr>) -> impl Iterator<Item = SocketAddr> {
    let last = last.filter(|last| last.ip() == wanted.ip() && *last != wanted);
    let near = (0..NEAR).filter_map(move |n| wanted.port().checked_add(APART + n));
    // Any port: the kernel chooses.
    let ports = near.chain([0]);
    last.into_iter().chain(ports.map(move |port| SocketAddr::new(wanted.ip(), port)))
}

/// Tries to have the wanted port until it can be had. Links that stand on the other one stay.
pub(crate) async fn regain(links: LinkServer, wanted: SocketAddr) {
    regain_every(links, wanted, AGAIN).await;
}

async fn regain_every(links: LinkServer, wanted: SocketAddr, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        if let Ok(listener) = beside(wanted) {
            links.listen(listener);
            links.advertise(wanted);
            tracing::info!(%wanted, "the port of links is free again");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn links(wanted: SocketAddr, folder: &Path) -> LinkServer {
        LinkServer::start(wanted, &folder.join("pki")).unwrap().0
    }

    #[tokio::test]
    async fn a_taken_port_is_stood_in_for_and_had_again() {
        let tmp = tempfile::tempdir().unwrap();
        let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wanted = stranger.local_addr().unwrap();
        let first = links(wanted, tmp.path());
        let used = open(&first, wanted, None).unwrap().expect("taken").used;
        assert_ne!(used, wanted);
        assert_eq!(first.address(), used);
        tokio::net::TcpStream::connect(used).await.expect("it serves");
        // Where links came before is where running pods still dial.
        let last = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let second = links(wanted, tmp.path());
        assert_eq!(open(&second, wanted, Some(last)).unwrap(), Some(Taken { wanted, used: last }));
        let elsewhere: SocketAddr = "127.0.0.2:7".parse().unwrap();
        assert!(others(wanted, Some(elsewhere)).all(|at| at.ip() == wanted.ip()), "another address is of no use");

        let regained = tokio::spawn(regain_every(first.clone(), wanted, Duration::from_millis(20)));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(first.address(), used, "as long as the stranger has it");
        drop(stranger);
        tokio::time::timeout(Duration::from_secs(10), regained).await.expect("had again").unwrap();
        assert_eq!(first.address(), wanted);
        for at in [wanted, used] {
            tokio::net::TcpStream::connect(at).await.expect("both serve");
        }
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_told_as_such() {
        let tmp = tempfile::tempdir().unwrap();
        // For documentation only (RFC 5737): nobody's.
        let wanted: SocketAddr = "192.0.2.1:7000".parse().unwrap();
        let error = open(&links(wanted, tmp.path()), wanted, None).unwrap_err();
        assert!(error.to_string().contains("hpk up"), "{error}");
    }
}
