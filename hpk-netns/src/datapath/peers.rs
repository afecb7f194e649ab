//! Who the other pods are: address to endpoint, key and WireGuard session. No I/O; time is given.
//!
//! ```text
//! unknown ── a packet for it, or a call from it ─▶ asked (packets wait, the question is repeated)
//! asked ── the kubelet answers ─▶ peer (packets go) or absent (packets are dropped; asked again a second later)
//! peer ── the kubelet says otherwise, or it does not answer ─▶ asked
//! ```

use super::bulk::Bulk;
use super::keys::{Keys, PublicKey};
use boringtun::noise::Tunn;
use boringtun::noise::rate_limiter::RateLimiter;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets that wait for one answer.
const WAITING: usize = 32;
/// Addresses asked for at once; a pod that scans the range is not served further.
const ASKED: usize = 1024;
/// A question that nobody answered is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A question that nobody answered is given up, with the packets.
const GIVE_UP: Duration = Duration::from_secs(15);
/// How long "no such pod" holds.
const ABSENT: Duration = Duration::from_secs(1);

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("ips", &self.ips).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

pub(crate) struct Peer {
    /// Its addresses as far as they are known: one of each family.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) endpoint: SocketAddr,
    pub(crate) key: Option<PublicKey>,
    /// A tunnel even when the path is local: the shortcut can vanish.
    pub(crate) tunnel: Option<Box<Tunn>>,
    /// The faster way beside the tunnel, where this processor knows one.
    pub(crate) bulk: Option<Box<Bulk>>,
    /// Socket on this node, while it works.
    pub(crate) local: Option<PathBuf>,
    /// Last packet to or from it.
    pub(crate) active: Instant,
    /// Last look at the tunnel's timers.
    pub(crate) ticked: Instant,
    /// Last authentic packet from it.
    pub(crate) heard: Instant,
}

impl Peer {
    /// Takes the peer's place from the kubelet. Its socket on this node is named by one of its addresses, so an update for
    /// another address leaves the local socket unchanged.
    fn moved(&mut self, endpoint: SocketAddr, local: Option<PathBuf>) {
        if self.endpoint != endpoint {
            self.endpoint = endpoint;
            self.local = None;
        }
        self.local = local.or_else(|| self.local.take());
    }
}

/// What is known of an address.
#[derive(Debug)]
enum Entry {
    Peer(usize),
    Asked { since: Instant, again: Instant, packets: Vec<Vec<u8>> },
    Absent { until: Instant },
}

/// What to do with a packet for an address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// This peer has it.
    Peer(usize),
    /// The packet was kept; ask the kubelet now when true.
    Wait {
        /// Whether the question is to be asked.
        ask: bool,
    },
    /// Nobody has it.
    Absent,
}

/// All of them.
pub(crate) struct Peers {
    keys: Option<Keys>,
    /// Since when the faster cipher is offered; None: it is not.
    bulk: Option<Instant>,
    limiter: Option<Arc<RateLimiter>>,
    list: Vec<Option<Peer>>,
    by_ip: HashMap<IpAddr, Entry>,
    by_key: HashMap<PublicKey, usize>,
}

impl Peers {
    /// `keys`: ours, None when packets go in the clear. `bulk`: now, to offer the faster cipher.
    pub(crate) fn new(keys: Option<Keys>, bulk: Option<Instant>) -> Self {
        let limiter = keys.as_ref().map(|k| Arc::new(RateLimiter::new(k.public(), 200)));
        Self { keys, bulk, limiter, list: Vec::new(), by_ip: HashMap::new(), by_key: HashMap::new() }
    }

    pub(crate) fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    pub(crate) fn limiter(&self) -> Option<&Arc<RateLimiter>> {
        self.limiter.as_ref()
    }

    pub(crate) fn get(&mut self, index: usize) -> Option<&mut Peer> {
        self.list.get_mut(index)?.as_mut()
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    /// The peer whose datapath has this address, for packets in the clear.
    pub(crate) fn index_of(&self, ip: IpAddr) -> Option<usize> {
        match self.by_ip.get(&ip) {
            Some(Entry::Peer(index)) => Some(*index),
            _ => None,
        }
    }

    /// Where a packet for `ip` goes; `packet` is copied when it must wait.
    pub(crate) fn lookup(&mut self, ip: IpAddr, packet: &[u8], now: Instant) -> Lookup {
        match self.by_ip.get_mut(&ip) {
            Some(Entry::Peer(index)) => return Lookup::Peer(*index),
            Some(Entry::Asked { packets, .. }) => {
                if packets.len() < WAITING {
                    packets.push(packet.to_vec());
                }
                return Lookup::Wait { ask: false };
            }
            Some(Entry::Absent { until }) if *until > now => return Lookup::Absent,
            _ => {}
        }
        if self.by_ip.len() >= ASKED + self.list.len() {
            self.by_ip.retain(|_, e| !matches!(e, Entry::Absent { until } if *until <= now));
            if self.by_ip.len() >= ASKED + self.list.len() {
                return Lookup::Absent;
            }
        }
        self.by_ip.insert(ip, Entry::Asked { since: now, again: now + ASK_AGAIN, packets: vec![packet.to_vec()] });
        Lookup::Wait { ask: true }
    }

    /// The kubelet's word on an address. Returns the packets that waited, and the peer for them.
    pub(crate) fn told(
        &mut self,
        ip: IpAddr,
        endpoint: Option<SocketAddr>,
        key: Option<PublicKey>,
        local: Option<PathBuf>,
        now: Instant,
    ) -> (Option<usize>, Vec<Vec<u8>>) {
        let waiting = match self.by_ip.get_mut(&ip) {
            Some(Entry::Asked { packets, .. }) => std::mem::take(packets),
            _ => Vec::new(),
        };
        // Both ends must mean the same: keys on one side only is no peer that could be talked to.
        let usable = key.is_some() == self.keys.is_some();
        let Some(endpoint) = endpoint.filter(|_| usable) else {
            self.forget(ip);
            self.by_ip.insert(ip, Entry::Absent { until: now + ABSENT });
            return (None, Vec::new());
        };
        if let Some(Entry::Peer(index)) = self.by_ip.get(&ip) {
            let index = *index;
            if let Some(peer) = self.get(index)
                && peer.key == key
            {
                peer.moved(endpoint, local);
                return (Some(index), waiting);
            }
        }
        self.forget(ip);
        // A second address of a pod: both go through the one session that its key has.
        if let Some(index) = key.as_ref().and_then(|key| self.by_key(key))
            && let Some(peer) = self.get(index)
        {
            peer.moved(endpoint, local);
            peer.ips.push(ip);
            self.by_ip.insert(ip, Entry::Peer(index));
            return (Some(index), waiting);
        }
        let index = self.list.iter().position(Option::is_none).unwrap_or_else(|| {
            self.list.push(None);
            self.list.len() - 1
        });
        let (tunnel, bulk) = (self.tunnel(index, key.as_ref()), self.bulk(index));
        if let Some(place) = self.list.get_mut(index) {
            *place =
                Some(Peer { ips: vec![ip], endpoint, key, tunnel, bulk, local, active: now, ticked: now, heard: now });
        }
        if let Some(key) = key {
            self.by_key.insert(key, index);
        }
        self.by_ip.insert(ip, Entry::Peer(index));
        (Some(index), waiting)
    }

    /// A fresh tunnel for a slot: the slot's number is the upper part of its session indices.
    fn tunnel(&self, index: usize, key: Option<&PublicKey>) -> Option<Box<Tunn>> {
        let (keys, key) = (self.keys.as_ref()?, key?);
        let index = u32::try_from(index).unwrap_or(0);
        Some(Box::new(Tunn::new(keys.private(), key.x25519(), None, None, index, self.limiter.clone())))
    }

    fn bulk(&self, index: usize) -> Option<Box<Bulk>> {
        self.bulk.map(|began| Box::new(Bulk::new(index, began)))
    }

    /// Starts a peer's tunnel anew, after its session died.
    pub(crate) fn reset(&mut self, index: usize) {
        let key = self.get(index).and_then(|p| p.key);
        let (tunnel, bulk) = (self.tunnel(index, key.as_ref()), self.bulk(index));
        if let Some(peer) = self.get(index) {
            (peer.tunnel, peer.bulk) = (tunnel, bulk);
        }
    }

    /// An address is nobody's; a peer without any is gone.
    fn forget(&mut self, ip: IpAddr) {
        let Some(Entry::Peer(index)) = self.by_ip.remove(&ip) else { return };
        let Some(place) = self.list.get_mut(index) else { return };
        if let Some(peer) = place {
            peer.ips.retain(|own| *own != ip);
        }
        if let Some(peer) = place.take_if(|peer| peer.ips.is_empty())
            && let Some(key) = peer.key
        {
            self.by_key.remove(&key);
        }
    }

    /// Questions to repeat now; those too old are given up.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<IpAddr> {
        let mut ask = Vec::new();
        for (ip, entry) in &mut self.by_ip {
            if let Entry::Asked { since, again, .. } = entry {
                if now.duration_since(*since) >= GIVE_UP {
                    *entry = Entry::Absent { until: now };
                } else if now >= *again {
                    *again = now + ASK_AGAIN;
                    ask.push(*ip);
                }
            }
        }
        ask
    }

    /// Whether anything waits for time to pass: an unanswered question.
    pub(crate) fn is_asking(&self) -> bool {
        self.by_ip.values().any(|e| matches!(e, Entry::Asked { .. }))
    }

    /// Peers talked to within `quiet`.
    pub(crate) fn active(&self, now: Instant, quiet: Duration) -> Vec<usize> {
        let recent = |p: &Peer| p.tunnel.is_some() && now.duration_since(p.active) < quiet;
        self.list.iter().enumerate().filter(|(_, p)| p.as_ref().is_some_and(recent)).map(|(n, _)| n).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 244, 0, n])
    }

    fn endpoint(n: u16) -> Option<SocketAddr> {
        Some(SocketAddr::from(([10, 77, 0, 11], n)))
    }

    #[test]
    fn packets_wait_for_the_answer_and_questions_are_repeated() {
        let mut p = Peers::new(None, None);
        let t = Instant::now();
        assert_eq!(p.lookup(ip(1), b"a", t), Lookup::Wait { ask: true });
        assert_eq!(p.lookup(ip(1), b"b", t), Lookup::Wait { ask: false });
        assert!(p.is_asking() && p.overdue(t).is_empty());
        assert_eq!(p.overdue(t + ASK_AGAIN), [ip(1)]);
        let (index, waiting) = p.told(ip(1), endpoint(1), None, None, t);
        assert_eq!(waiting, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(p.lookup(ip(1), b"c", t), Lookup::Peer(index.unwrap()));
        assert!(!p.is_asking());
    }

    #[test]
    fn absent_for_a_second_then_asked_again() {
        let mut p = Peers::new(None, None);
        let t = Instant::now();
        p.lookup(ip(1), b"a", t);
        assert_eq!(p.told(ip(1), None, None, None, t), (None, vec![]));
        assert_eq!(p.lookup(ip(1), b"a", t), Lookup::Absent);
        assert_eq!(p.lookup(ip(1), b"a", t + ABSENT), Lookup::Wait { ask: true });
        assert!(p.overdue(t + ABSENT + GIVE_UP).is_empty() && !p.is_asking());
    }

    #[test]
    fn a_peer_that_moves_keeps_its_slot_and_one_with_a_new_key_does_not_keep_its_session() {
        let (ours, theirs, newer) = (Keys::generate().unwrap(), Keys::generate().unwrap(), Keys::generate().unwrap());
        let mut p = Peers::new(Some(ours), Some(Instant::now()));
        let t = Instant::now();
        let key = PublicKey::parse(&theirs.public_text()).unwrap();
        let (index, _) = p.told(ip(1), endpoint(1), Some(key), None, t);
        let index = index.unwrap();
        assert_eq!(p.told(ip(1), endpoint(2), Some(key), None, t).0, Some(index));
        assert_eq!(p.get(index).unwrap().endpoint, endpoint(2).unwrap());
        let new_key = PublicKey::parse(&newer.public_text()).unwrap();
        p.told(ip(1), endpoint(2), Some(new_key), None, t);
        assert_eq!((p.by_key(&key), p.by_key(&new_key).is_some()), (None, true));
        // Plain text from a peer is not accepted where we encrypt.
        assert_eq!(p.told(ip(2), endpoint(1), None, None, t).0, None);
    }

    #[test]
    fn both_addresses_of_a_pod_share_its_session_and_it_goes_with_the_last() {
        let (ours, theirs, others) = (Keys::generate().unwrap(), Keys::generate().unwrap(), Keys::generate().unwrap());
        let mut p = Peers::new(Some(ours), Some(Instant::now()));
        let t = Instant::now();
        let key = PublicKey::parse(&theirs.public_text()).unwrap();
        let (v4, v6) = (ip(1), "fd00:10:244::101".parse().unwrap());
        p.lookup(v6, b"waits", t);
        let local = PathBuf::from("here");
        let (index, _) = p.told(v4, endpoint(1), Some(key), Some(local.clone()), t);
        let (same, waiting) = p.told(v6, endpoint(1), Some(key), None, t);
        assert_eq!((same, waiting), (index, vec![b"waits".to_vec()]));
        let index = index.unwrap();
        assert_eq!(p.lookup(v6, b"", t), Lookup::Peer(index));
        let peer = p.get(index).unwrap();
        assert_eq!((&peer.ips, &peer.local), (&vec![v4, v6], &Some(local)));
        // One of them is given to another pod.
        let other = PublicKey::parse(&others.public_text()).unwrap();
        let (next, _) = p.told(v6, endpoint(2), Some(other), None, t);
        assert_ne!(next, Some(index));
        assert_eq!((p.by_key(&key), p.by_key(&other)), (Some(index), next));
        p.told(v4, None, None, None, t);
        assert_eq!((p.by_key(&key), p.by_key(&other)), (None, next));
    }

    #[test]
    fn a_scan_is_bounded() {
        let mut p = Peers::new(None, None);
        let t = Instant::now();
        for n in 0..4000_u32 {
            p.lookup(IpAddr::V4(n.into()), b"", t);
        }
        assert!(p.by_ip.len() <= ASKED);
    }
}
