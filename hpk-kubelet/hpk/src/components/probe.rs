//! How a component is asked whether it serves: what to ask, as data. The asking is
//! [`crate::supervise::ask`]'s.

use super::Layout;
use hpk_layout::pki;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// Nothing to ask: started is ready.
    None,
    /// The program says [`hpk_api::READY`] on a line of its standard output.
    Says,
    /// A DNS server knows these names: one of the cluster, and one that nobody else can know.
    Dns {
        /// Where, by UDP.
        addr: SocketAddr,
        /// Names with the address that must be in the answer.
        names: Vec<(String, IpAddr)>,
    },
    /// GET with a client certificate answers 200.
    Https {
        /// Where; the server's certificate must carry this address.
        addr: SocketAddr,
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
    pub key: PathBuf,
}

impl Credentials {
    pub(super) fn new(l: &Layout, ca: &str, client: &str) -> Self {
        let folder = l.home.pki();
        Self {
            ca: pki::certificate(&folder, ca),
            cert: pki::certificate(&folder, client),
            key: pki::key(&folder, client),
        }
    }
}
