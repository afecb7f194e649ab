//! Who may link: what was issued to whom, and the file where it lies.
//!
//! ```text
//!  issue, adopt ─▶ is what lies there still good? ── yes ──────────────────────▶ registry: this certificate, these addresses
//!                     └─ no: issue, write the file ── written ─────────────────▶ (a link that stands goes on)
//!                                                  └─ not: what was valid stays valid, tried again
//!  moved to another address, half of a certificate's life over ─▶ the same for all of them
//!  withdraw ───────────────────────────────────────────────────────────────────▶ registry: nobody; its link is cut
//! ```
//! The other end reads its file before each dial, so a new address or certificate needs no word to it. One task owns all of
//! this and does one thing at a time; files are written elsewhere than on the threads that serve links.

use crate::pki::{self, LinkCa, PkiError};
use crate::registry::Ask;
use crate::tls::{self, Identity, is_of};
use hpk_api::link::LinkCredentials;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How often certificates are looked at: a machine that was asleep must not wait long.
const LOOK: Duration = Duration::from_secs(60);
/// A file that could not be written is tried again after this long.
const AGAIN: Duration = Duration::from_secs(10);

/// What the task is asked for.
pub(crate) enum Order {
    /// Credentials for this pod in this file, and these addresses for its datapath.
    Grant {
        uid: String,
        /// Its `link.json`.
        file: PathBuf,
        /// Addresses that it may have.
        addresses: Vec<IpAddr>,
        /// Whether the file is good now. Without one it is tried until it is.
        answer: Option<oneshot::Sender<Result<(), PkiError>>>,
    },
    /// No link for this pod any more.
    Withdraw { uid: String },
}

/// What is kept of one grant.
struct Grant {
    file: PathBuf,
    addresses: Vec<IpAddr>,
    expires_at: Option<Timestamp>,
    /// The file is not as it should be.
    failed: bool,
}

/// Runs until the server's handles are gone.
pub(crate) async fn keep(
    ca: Arc<LinkCa>,
    identity: Arc<Identity>,
    mut own_end: Timestamp,
    mut orders: mpsc::UnboundedReceiver<Order>,
    mut advertised: watch::Receiver<SocketAddr>,
    registry: mpsc::Sender<Ask>,
) {
    let mut grants: BTreeMap<String, Grant> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let due: Vec<String> = tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Withdraw { uid }) => {
                    grants.remove(&uid);
                    let _ = registry.send(Ask::Withdraw { uid }).await;
                    continue;
                }
                Some(Order::Grant { uid, file, addresses, answer }) => {
                    let mut grant = Grant { file, addresses, expires_at: None, failed: false };
                    let result = see_to(&ca, &uid, &mut grant, &advertised, &registry).await;
                    match answer {
                        Some(answer) => drop(answer.send(result)),
                        None => told(&uid, &result),
                    }
                    grants.insert(uid, grant);
                    continue;
                }
            },
            Ok(()) = advertised.changed() => grants.keys().cloned().collect(),
            _ = again.tick(), if grants.values().any(|grant| grant.failed) => {
                grants.iter().filter(|(_, grant)| grant.failed).map(|(uid, _)| uid.clone()).collect()
            }
            _ = look.tick() => {
                let now = Timestamp::now();
                if !pki::is_fresh(Some(own_end), now) {
                    own_end = renew(&ca, &identity, now).unwrap_or(own_end);
                }
                let old = |grant: &Grant| !grant.failed && !pki::is_fresh(grant.expires_at, now);
                grants.iter().filter(|(_, grant)| old(grant)).map(|(uid, _)| uid.clone()).collect()
            }
        };
        for uid in due {
            if let Some(grant) = grants.get_mut(&uid) {
                let result = see_to(&ca, &uid, grant, &advertised, &registry).await;
                told(&uid, &result);
            }
        }
    }
}

fn told(uid: &str, result: &Result<(), PkiError>) {
    if let Err(error) = result {
        tracing::warn!(%uid, %error, "credentials of a link not written: tried again");
    }
}

/// The kubelet's own certificate; its new end.
fn renew(ca: &LinkCa, identity: &Identity, now: Timestamp) -> Option<Timestamp> {
    let renewed = ca.server(now).map_err(|error| error.to_string()).and_then(|(cert, key, end)| {
        identity.replace(&cert, &key).map_err(|error| error.to_string())?;
        Ok(end)
    });
    renewed.inspect_err(|error| tracing::error!(error, "the certificate of the kubelet's links was not renewed")).ok()
}

/// Makes the file good and tells the registry which certificate is valid.
async fn see_to(
    ca: &Arc<LinkCa>,
    uid: &str,
    grant: &mut Grant,
    advertised: &watch::Receiver<SocketAddr>,
    registry: &mpsc::Sender<Ask>,
) -> Result<(), PkiError> {
    let address = *advertised.borrow();
    let (authority, owned, file) = (ca.clone(), uid.to_owned(), grant.file.clone());
    let work = tokio::task::spawn_blocking(move || ensure(&authority, &owned, &file, address, Timestamp::now()));
    let (valid, result) = work.await.map_err(|_| PkiError::Ending)?;
    grant.failed = result.is_err();
    if let Some(Valid { certificate, expires_at }) = valid {
        grant.expires_at = expires_at;
        let addresses = grant.addresses.clone();
        let _ = registry.send(Ask::Admit { uid: uid.to_owned(), certificate, addresses }).await;
    }
    result
}

/// The certificate that its owner has.
#[derive(Debug, PartialEq, Eq)]
struct Valid {
    certificate: CertificateDer<'static>,
    expires_at: Option<Timestamp>,
}

/// Leaves good credentials as they are and writes others. What could not be replaced stays valid.
fn ensure(
    ca: &LinkCa,
    uid: &str,
    file: &Path,
    address: SocketAddr,
    now: Timestamp,
) -> (Option<Valid>, Result<(), PkiError>) {
    let found = match pki::read(file) {
        Ok(text) => text.and_then(|text| of_this_pod(ca, uid, &text)),
        Err(error) => return (None, Err(error)),
    };
    let had = found.as_ref().map(|(credentials, certificate)| Valid {
        certificate: certificate.clone(),
        expires_at: credentials.expires_at,
    });
    let fresh = found.map(|(credentials, _)| credentials).filter(|c| pki::is_fresh(c.expires_at, now));
    let wanted = match fresh {
        Some(good) if good.address == address => return (had, Ok(())),
        Some(good) => LinkCredentials { address, ..good },
        None => match ca.issue(uid, address, now) {
            Ok(issued) => issued,
            Err(error) => return (had, Err(error)),
        },
    };
    let written = serde_json::to_string_pretty(&wanted)
        .map_err(std::io::Error::other)
        .map_err(|source| PkiError::Io { path: file.to_path_buf(), source })
        .and_then(|text| pki::write(file, &text));
    match written {
        Ok(()) => {
            let certificate = tls::certificate("certificate", &wanted.cert).ok();
            (certificate.map(|certificate| Valid { certificate, expires_at: wanted.expires_at }), Ok(()))
        }
        Err(error) => (had, Err(error)),
    }
}

/// Credentials in this text, if our authority issued them to this pod.
fn of_this_pod(ca: &LinkCa, uid: &str, text: &str) -> Option<(LinkCredentials, CertificateDer<'static>)> {
    let credentials: LinkCredentials = serde_json::from_str(text).ok()?;
    let certificate = tls::certificate("certificate", &credentials.cert).ok()?;
    let ours = credentials.ca == ca.certificate() && is_of(&certificate, uid);
    ours.then_some((credentials, certificate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use std::os::unix::fs::PermissionsExt;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn read(file: &Path) -> LinkCredentials {
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }

    #[test]
    fn what_is_good_stays_and_the_rest_is_written_again() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = LinkCa::load_or_create(&tmp.path().join("pki")).unwrap();
        let file = tmp.path().join("link.json");
        let now = Timestamp::now();
        let see = |uid: &str, port, now| {
            let (valid, result) = ensure(&ca, uid, &file, at(port), now);
            result.unwrap();
            let written = read(&file);
            assert_eq!(
                valid.unwrap().certificate,
                tls::certificate("c", &written.cert).unwrap(),
                "what is told is what lies there"
            );
            written
        };
        let first = see("a", 1, now);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(see("a", 1, now), first);
        let moved = see("a", 2, now);
        assert_eq!((moved.address, &moved.cert), (at(2), &first.cert), "another address is no reason for another key");
        let later = now + SignedDuration::from_hours(100);
        let renewed = see("a", 2, later);
        assert_ne!(renewed.cert, first.cert);
        assert!(renewed.expires_at > first.expires_at);
        // Another pod's file, in its place: it is no credential of this one.
        let other = see("b", 2, later);
        assert_ne!(other.cert, renewed.cert);
        // An authority that was begun anew, and a file that is none.
        let anew = LinkCa::load_or_create(&tmp.path().join("anew")).unwrap();
        ensure(&anew, "b", &file, at(2), later).1.unwrap();
        assert_eq!(read(&file).ca, anew.certificate());
        std::fs::write(&file, "{").unwrap();
        see("b", 2, later);
    }

    #[test]
    fn what_cannot_be_replaced_stays_valid() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = LinkCa::load_or_create(&tmp.path().join("pki")).unwrap();
        let file = tmp.path().join("link.json");
        let now = Timestamp::now();
        let (had, result) = ensure(&ca, "a", &file, at(1), now);
        result.unwrap();
        // Its name leaves no room for the name of a new file beside it: nothing can be written, not even by root.
        let long = tmp.path().join("l".repeat(255));
        std::fs::rename(&file, &long).unwrap();
        let (kept, result) = ensure(&ca, "a", &long, at(2), now);
        assert!(matches!(result, Err(PkiError::Io { .. })), "{result:?}");
        assert_eq!(kept, had);
        assert_eq!(read(&long).address, at(1));
        // And with nothing there, nobody is admitted.
        std::fs::remove_file(&long).unwrap();
        assert_eq!(ensure(&ca, "a", &long, at(2), now).0, None);
    }
}
