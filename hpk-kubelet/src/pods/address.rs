//! Pod addresses: which are free, in an order that reuses none too soon. Pure.
//!
//! ```text
//!   first ……… next ─────────── mark ……… last
//!    given before │ to be given │ not yet allowed: the mark is moved on disk first
//! ```
//! Addresses are given in a circle, so one that was given back comes up only after all others. The place in the circle
//! must outlive the kubelet, whose pods' records vanish with the pods: every [`BLOCK`] addresses a mark ahead of the
//! next one is to be written ([`Pool::due`]) before any of them is used. A kubelet that was killed goes on at the mark.

use ipnet::IpNet;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses given between two writes of the mark; as many are skipped by a restart at most.
const BLOCK: u32 = 64;

/// Addresses of one IPv4 range, and of an IPv6 range beside it: each pod's IPv6 address ends in the host part of its
/// IPv4 address, so one decision serves both. What is in use is told at the start, from the pods' own records.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    base: u32,
    v6: Option<u128>,
    first: u32,
    count: u32,
    next: u32,
    /// Addresses that may be given before the mark must be moved.
    left: u32,
    used: HashSet<Ipv4Addr>,
}

impl Pool {
    /// The pool of `cidrs` (`10.244.0.0/16` or `10.244.0.0/16,fd00:10:244::/64`). Network, broadcast and the first 255
    /// addresses (kept for the control plane's own members) are left out. `mark`: what [`Pool::due`] last said. None:
    /// no IPv4 range of useful size is in it, or an IPv6 range too small for it.
    #[must_use]
    pub(crate) fn new(cidrs: &str, used: impl IntoIterator<Item = IpAddr>, mark: Option<Ipv4Addr>) -> Option<Self> {
        let ranges = hpk_api::net::ranges(cidrs)?;
        let (mut v4, mut v6) = (None, None);
        for range in ranges {
            match range {
                IpNet::V4(range) => v4 = v4.or(Some(range)),
                IpNet::V6(range) => v6 = v6.or(Some(range)),
            }
        }
        let v4 = v4?;
        let length = u32::from(v4.prefix_len());
        if length > 28 || v6.is_some_and(|v6| u32::from(v6.prefix_len()) > 96 + length) {
            return None;
        }
        let size = 1_u64 << (32 - length);
        let reserved = if size > 1024 { 256 } else { 1 };
        let count = u32::try_from(size - reserved - 1).ok()?;
        let base = u32::from(v4.network());
        let first = base + u32::try_from(reserved).ok()?;
        let used: HashSet<Ipv4Addr> = used
            .into_iter()
            .filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            })
            .collect();
        let offset = |ip: Ipv4Addr| Some(u32::from(ip).wrapping_sub(first)).filter(|o| *o < count);
        // Without a mark: after the highest address known.
        let next = mark.and_then(offset).or_else(|| used.iter().filter_map(|ip| offset(*ip)).max().map(|o| o + 1));
        let v6 = v6.map(|v6| u128::from(v6.network()));
        Some(Self { base, v6, first, count, next: next.unwrap_or(0) % count, left: 0, used })
    }

    /// Takes the addresses of one pod. None: all are in use.
    pub(crate) fn take(&mut self) -> Option<Vec<IpAddr>> {
        for _ in 0..self.count {
            let ip = Ipv4Addr::from(self.first + self.next);
            self.next = (self.next + 1) % self.count;
            self.left = self.left.saturating_sub(1);
            if self.used.insert(ip) {
                let v6 = self.v6.map(|net| Ipv6Addr::from(net | u128::from(u32::from(ip) - self.base)));
                return Some(std::iter::once(IpAddr::V4(ip)).chain(v6.map(IpAddr::V6)).collect());
            }
        }
        None
    }

    /// The mark, when it is to be written before what was taken is used.
    pub(crate) fn due(&mut self) -> Option<Ipv4Addr> {
        if self.left > 0 {
            return None;
        }
        // At most half a round: a restart in a small range does not come back to where it was.
        self.left = BLOCK.min(self.count / 2).max(1);
        Some(Ipv4Addr::from(self.first + (self.next + self.left) % self.count))
    }

    /// Gives addresses back; they come up again only after all others.
    pub(crate) fn release(&mut self, ips: &[IpAddr]) {
        for ip in ips {
            if let IpAddr::V4(ip) = ip {
                self.used.remove(ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn v4(ips: Option<Vec<IpAddr>>) -> IpAddr {
        ips.expect("an address")[0]
    }

    #[test]
    fn round_and_round() {
        let mut pool = Pool::new("10.1.2.0/28", [], None).expect("pool");
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(|ips| ips[0]).collect();
        assert_eq!(all.len(), 14);
        assert_eq!(all[0].to_string(), "10.1.2.1");
        pool.release(&all[3..4]);
        assert_eq!(v4(pool.take()), all[3]);
        pool.release(&all[1..3]);
        assert_eq!(v4(pool.take()), all[1]);
        assert_eq!(v4(pool.take()), all[2]);
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn goes_on_after_a_restart() {
        let mut pool = Pool::new("10.244.0.0/16", ["10.244.1.5".parse().expect("ip")], None).expect("pool");
        assert_eq!(v4(pool.take()).to_string(), "10.244.1.6");
        for bad in ["nonsense", "fd00::/64", "10.244.0.0/30", "10.244.0.0/16,fd00::/113", "10.244.0.0/16,x"] {
            assert!(Pool::new(bad, [], None).is_none(), "{bad}");
        }
    }

    #[test]
    fn both_families_from_one_decision() {
        let mut pool = Pool::new("10.244.0.0/16,fd00:10:244::/64", [], None).expect("pool");
        let ips: Vec<String> = pool.take().expect("addresses").iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.244.1.0", "fd00:10:244::100"]);
    }

    proptest! {
        /// Pods come and go and the kubelet is killed at any moment, with every record of the pods that went: no
        /// address is given twice at once, and none again before a third of the range was given in between (a restart
        /// skips up to [`BLOCK`]).
        #[test]
        fn never_two_at_once_and_none_too_soon(steps in proptest::collection::vec(0..8_u8, 1..3000)) {
            const RANGE: &str = "10.0.0.0/22";
            let mut mark = None;
            let mut pool = Pool::new(RANGE, [], mark).expect("pool");
            let mut alive: Vec<IpAddr> = Vec::new();
            let (mut given, mut kills, mut last) = (0_u32, 0, HashMap::new());
            for step in steps {
                match step {
                    0..4 if alive.len() < 300 => {
                        let ip = v4(pool.take());
                        mark = pool.due().or(mark);
                        given += 1;
                        prop_assert!(!alive.contains(&ip));
                        if let Some(before) = last.insert(ip, given) {
                            prop_assert!(given - before > 1022 / 3, "{ip} again after {}", given - before);
                        }
                        alive.push(ip);
                    }
                    4..7 if !alive.is_empty() => {
                        let ip = alive.swap_remove(usize::from(step) % alive.len());
                        pool.release(&[ip]);
                    }
                    7 if kills < 4 => {
                        kills += 1;
                        pool = Pool::new(RANGE, alive.iter().copied(), mark).expect("pool");
                    }
                    _ => {}
                }
            }
        }
    }
}
