//! How a component is asked whether it serves: what to ask, as data. The asking is
//! [`crate::supervise::ask`]'s.

use super::Layout;
use std::net::SocketAddr;
use std::path::PathBuf;

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Nothing to ask: started is ready.
    None,
    /// A connection is accepted.
    Tcp {
        /// Where.
        addr: SocketAddr,
    },
    /// GET answers 200.
    Http {
        /// Where.
        addr: SocketAddr,
        /// What.
        path: String,
    },
    /// GET with a client certificate answers 200.
    Https {
        /// Where; the server's certificate must carry this address.
        addr: SocketAddr,
        /// What.
        path: String,
        /// Who asks, and whom to believe.
        credentials: Credentials,
    },
}

/// Files of a TLS client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Authority of the server's certificate.
    pub ca: PathBuf,
    /// Our certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Credentials {
    pub(super) fn new(l: &Layout, ca: &str, client: &str) -> Self {
        let pki = l.home.pki();
        Self {
            ca: pki.join(format!("{ca}.crt")),
            cert: pki.join(format!("{client}.crt")),
            key: pki.join(format!("{client}.key")),
        }
    }
}
