//! The one task that knows who may link and which links stand.
//!
//! ```text
//!  grants ─ Admit, Withdraw ─▶ who may: UID ─▶ certificate, addresses
//!  links ── Connect ─────────▶ judged by that ─▶ taken │ refused │ occupied: is the one that stands still alive?
//! ```
//! Nobody is admitted who was not said to be. A pod's outposts have links of their own, under names of their own. A second link of a pod takes the place of the first only when the first does
//! not answer: who has stolen a certificate cuts nobody off with it.

use crate::is_uid;
use crate::mux::Opener;
use crate::tls::is_of;
use hpk_api::link::{Hello, owner};
use rustls::pki_types::CertificateDer;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Why a link is not taken. Texts are for the pod's owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The versions of both ends.
    #[error(
        "hpk-netns speaks version {theirs} of the link, this kubelet {}: install one version on login and compute nodes",
        hpk_api::VERSION
    )]
    Version { theirs: u32 },
    #[error("the certificate was issued for another pod")]
    OtherPod,
    #[error("this kubelet has no running pod of that UID")]
    Unknown,
    #[error("the certificate has been replaced: the pod's folder has the one that is valid")]
    Replaced,
    #[error("it says that pod address {0} is its own, which the kubelet did not give it")]
    Address(IpAddr),
    #[error("it says that another pod's key is its own")]
    Key,
    #[error("a link of this pod stands, and whoever has it answers")]
    Second,
}

impl Refusal {
    /// Whether the pod's owner must hear of it: somebody with the pod's valid certificate says what is not so.
    pub(crate) fn is_a_lie(&self) -> bool {
        matches!(self, Self::Address(_) | Self::Key | Self::Second)
    }
}

/// What the registry is asked and told.
pub(crate) enum Ask {
    /// This certificate, and no other, is this pod's.
    Admit {
        uid: String,
        certificate: CertificateDer<'static>,
        addresses: Vec<IpAddr>,
    },
    /// This pod may not link any more; its link is cut.
    Withdraw {
        uid: String,
    },
    /// Somebody has said hello.
    Connect {
        arrival: Arrival,
        dead: Option<u64>,
        answer: oneshot::Sender<Taken>,
    },
    Subscribed {
        uid: String,
        id: u64,
        facts: mpsc::Sender<Arc<[u8]>>,
        done: oneshot::Sender<()>,
    },
    Ended {
        uid: String,
        id: u64,
        answer: oneshot::Sender<bool>,
    },
    Opener {
        uid: String,
        answer: oneshot::Sender<Option<Opener>>,
    },
    Await {
        uid: String,
        answer: oneshot::Sender<()>,
    },
    Push {
        uid: String,
        chunk: Arc<[u8]>,
    },
    Broadcast {
        chunk: Arc<[u8]>,
    },
    Count {
        answer: oneshot::Sender<usize>,
    },
}

/// A link that wants to be taken.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) hello: Hello,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) opener: Opener,
    pub(crate) cut: CancellationToken,
}

/// What became of it.
pub(crate) enum Taken {
    /// It stands, under this number.
    Yes(u64),
    /// A link of this pod stands: to be asked whether it is alive, by its number and a stream of its own.
    Occupied(u64, Opener),
    No(Refusal),
}

/// Who may link.
struct Admitted {
    certificate: CertificateDer<'static>,
    addresses: Vec<IpAddr>,
    /// What its datapaths have said, by outpost.
    keys: HashMap<u32, String>,
}

struct Entry {
    id: u64,
    opener: Opener,
    cut: CancellationToken,
    facts: Option<mpsc::Sender<Arc<[u8]>>>,
}

impl Entry {
    fn send(&self, chunk: &Arc<[u8]>) {
        if let Some(facts) = &self.facts
            && facts.try_send(chunk.clone()).is_err()
        {
            self.cut.cancel();
        }
    }
}

/// Whether this hello may be, by what was issued. The certificate's signature was checked before.
fn judge(admitted: &HashMap<String, Admitted>, hello: &Hello, certificate: &CertificateDer<'_>) -> Result<(), Refusal> {
    if hello.version > hpk_api::VERSION {
        return Err(Refusal::Version { theirs: hello.version });
    }
    let uid = &hello.pod_uid;
    if !is_uid(uid) || !is_of(certificate, uid) {
        return Err(Refusal::OtherPod);
    }
    let grant = admitted.get(uid).ok_or(Refusal::Unknown)?;
    if grant.certificate != *certificate {
        return Err(Refusal::Replaced);
    }
    if let Some(strange) = hello.pod_ips.iter().find(|ip| !grant.addresses.contains(ip)) {
        return Err(Refusal::Address(*strange));
    }
    let has = |grant: &Admitted, key| grant.keys.values().any(|has| has == key);
    let taken = |key| admitted.iter().any(|(other, grant)| other != uid && has(grant, key));
    if hello.public_key.as_ref().is_some_and(taken) {
        return Err(Refusal::Key);
    }
    Ok(())
}

/// Runs until the last one who could ask is gone.
pub(crate) async fn run(mut asked: mpsc::Receiver<Ask>) {
    let mut admitted: HashMap<String, Admitted> = HashMap::new();
    let mut links: HashMap<String, Entry> = HashMap::new();
    let mut awaited: HashMap<String, Vec<oneshot::Sender<()>>> = HashMap::new();
    let mut next_id = 0_u64;
    while let Some(ask) = asked.recv().await {
        match ask {
            Ask::Admit { uid, certificate, addresses } => {
                let keys = admitted.remove(&uid).map(|grant| grant.keys).unwrap_or_default();
                admitted.insert(uid, Admitted { certificate, addresses, keys });
            }
            Ask::Withdraw { uid } => {
                admitted.remove(&uid);
                for (_, entry) in links.iter().filter(|(link, _)| owner(link) == uid) {
                    entry.cut.cancel();
                }
            }
            Ask::Connect { arrival: Arrival { hello, certificate, opener, cut }, dead, answer } => {
                if let Err(refusal) = judge(&admitted, &hello, &certificate) {
                    let _ = answer.send(Taken::No(refusal));
                    continue;
                }
                let (uid, outpost, link) = (hello.pod_uid.clone(), hello.outpost, hello.link());
                if let Some(entry) = links.get(&link).filter(|entry| dead != Some(entry.id)) {
                    let _ = answer.send(Taken::Occupied(entry.id, entry.opener.clone()));
                    continue;
                }
                if let (Some(grant), Some(key)) = (admitted.get_mut(&uid), hello.public_key) {
                    grant.keys.insert(outpost, key);
                }
                next_id += 1;
                for waiting in awaited.remove(&link).unwrap_or_default() {
                    let _ = waiting.send(());
                }
                if let Some(old) = links.insert(link, Entry { id: next_id, opener, cut, facts: None }) {
                    old.cut.cancel();
                }
                let _ = answer.send(Taken::Yes(next_id));
            }
            Ask::Subscribed { uid, id, facts, done } => {
                if let Some(entry) = links.get_mut(&uid).filter(|e| e.id == id) {
                    entry.facts = Some(facts);
                }
                let _ = done.send(());
            }
            Ask::Ended { uid, id, answer } => {
                let current = links.get(&uid).is_some_and(|e| e.id == id);
                if current {
                    links.remove(&uid);
                }
                let _ = answer.send(current);
            }
            Ask::Opener { uid, answer } => {
                let _ = answer.send(links.get(&uid).map(|e| e.opener.clone()));
            }
            Ask::Await { uid, answer } => {
                if links.contains_key(&uid) {
                    let _ = answer.send(());
                    continue;
                }
                // Those who gave up are not kept.
                awaited.retain(|_, waiting| {
                    waiting.retain(|w| !w.is_closed());
                    !waiting.is_empty()
                });
                awaited.entry(uid).or_default().push(answer);
            }
            Ask::Push { uid, chunk } => {
                if let Some(entry) = links.get(&uid) {
                    entry.send(&chunk);
                }
            }
            Ask::Broadcast { chunk } => links.values().for_each(|entry| entry.send(&chunk)),
            Ask::Count { answer } => {
                let _ = answer.send(links.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::LinkCa;
    use crate::tls;
    use hpk_api::link::MEMBER;
    use jiff::Timestamp;

    fn hello(uid: &str, ips: &[&str], key: Option<&str>) -> Hello {
        Hello {
            version: hpk_api::VERSION,
            pod_uid: uid.to_owned(),
            job_id: String::new(),
            node: String::new(),
            datapath: None,
            public_key: key.map(str::to_owned),
            pod_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            outward: None,
            outpost: 0,
        }
    }

    #[test]
    fn only_what_was_given_may_be_said() {
        let tmp = tempfile::tempdir().unwrap();
        let ca = LinkCa::load_or_create(tmp.path()).unwrap();
        let issue = |uid| {
            let credentials = ca.issue(uid, "127.0.0.1:1".parse().unwrap(), Timestamp::now()).unwrap();
            tls::certificate("certificate", &credentials.cert).unwrap()
        };
        let (a, former, b, member) = (issue("a"), issue("a"), issue("b"), issue(MEMBER));
        let mut admitted = HashMap::new();
        for (uid, certificate, ips, key) in [
            ("a", &a, vec!["10.244.1.1", "fd00::1"], None),
            ("b", &b, vec!["10.244.1.2"], Some("key of b")),
            (MEMBER, &member, vec!["10.244.0.1"], Some("key of the member")),
        ] {
            let addresses = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let keys = key.map(|key| (0, key.to_owned())).into_iter().collect();
            admitted.insert(uid.to_owned(), Admitted { certificate: certificate.clone(), addresses, keys });
        }
        let says = |hello: Hello, certificate: &CertificateDer<'_>| judge(&admitted, &hello, certificate);
        assert_eq!(says(hello("a", &["10.244.1.1", "fd00::1"], Some("key of a")), &a), Ok(()));
        assert_eq!(says(hello("a", &["fd00::1"], None), &a), Ok(()), "one family is no lie");
        assert_eq!(says(hello("b", &["10.244.1.2"], Some("key of b")), &b), Ok(()), "its own key, again");
        assert_eq!(says(hello("a", &[], None), &former), Err(Refusal::Replaced));
        assert_eq!(says(hello("c", &[], None), &issue("c")), Err(Refusal::Unknown));
        for (claim, ip) in [(&["10.244.1.1", "10.244.1.2"][..], "10.244.1.2"), (&["10.244.0.1"], "10.244.0.1")] {
            assert_eq!(says(hello("a", claim, None), &a), Err(Refusal::Address(ip.parse().unwrap())));
        }
        for key in ["key of b", "key of the member"] {
            assert_eq!(says(hello("a", &[], Some(key)), &a), Err(Refusal::Key));
        }
        // Another's name, the member's above all, whichever certificate is shown.
        assert_eq!(says(hello(MEMBER, &["10.244.0.1"], None), &a), Err(Refusal::OtherPod));
        assert_eq!(says(hello("a", &[], None), &member), Err(Refusal::OtherPod));
        assert_eq!(says(hello("b", &[], None), &a), Err(Refusal::OtherPod));
        assert_eq!(says(hello("A", &[], None), &a), Err(Refusal::OtherPod));
        // An outpost is the pod, with the pod's certificate and addresses.
        let outpost = |uid, ips, key| Hello { outpost: 1, ..hello(uid, ips, key) };
        assert_eq!(says(outpost("a", &["fd00::1"], Some("another key of a")), &a), Ok(()));
        assert_eq!(says(outpost("a", &[], Some("key of b")), &a), Err(Refusal::Key));
        assert_eq!(says(outpost("b", &[], None), &a), Err(Refusal::OtherPod));
        assert_eq!(outpost("a", &[], None).link(), "a/1");
        let newer = Hello { version: hpk_api::VERSION + 1, ..hello("a", &[], None) };
        assert_eq!(says(newer, &a), Err(Refusal::Version { theirs: hpk_api::VERSION + 1 }));
    }
}
