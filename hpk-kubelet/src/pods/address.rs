//! Pod addresses: which are free, in an order that reuses none too soon.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};

/// Addresses of one IPv4 range. What is in use is told at the start, from the pods' own records.
#[derive(Clone, Debug)]
pub struct Pool {
    first: u32,
    count: u32,
    next: u32,
    used: HashSet<Ipv4Addr>,
}

impl Pool {
    /// The pool of `cidr` (`10.244.0.0/16`). Network, broadcast and the first 255 addresses (kept for the control
    /// plane's own members) are left out. None: not an IPv4 range of useful size.
    #[must_use]
    pub fn new(cidr: &str, used: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        let (base, length) = cidr.split_once('/')?;
        let base: Ipv4Addr = base.parse().ok()?;
        let length: u32 = length.parse().ok().filter(|l| *l <= 28)?;
        let size = 1_u64 << (32 - length);
        let reserved = if size > 1024 { 256 } else { 1 };
        let count = u32::try_from(size - reserved - 1).ok()?;
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        let first = (u32::from(base) & mask) + u32::try_from(reserved).ok()?;
        let used: HashSet<Ipv4Addr> = used
            .into_iter()
            .filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            })
            .collect();
        // Go on after the highest address known, so that those of pods just gone are not given again at once.
        let next =
            used.iter().map(|ip| u32::from(*ip).wrapping_sub(first)).filter(|o| *o < count).max().map_or(0, |o| o + 1);
        Some(Self { first, count, next: next % count, used })
    }

    /// Takes a free address. None: all are in use.
    pub fn take(&mut self) -> Option<IpAddr> {
        for _ in 0..self.count {
            let ip = Ipv4Addr::from(self.first + self.next);
            self.next = (self.next + 1) % self.count;
            if self.used.insert(ip) {
                return Some(IpAddr::V4(ip));
            }
        }
        None
    }

    /// Gives addresses back; they come up again only after all others.
    pub fn release(&mut self, ips: &[IpAddr]) {
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

    #[test]
    fn round_and_round() {
        let mut pool = Pool::new("10.1.2.0/28", []).expect("pool");
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(all.len(), 14);
        assert_eq!(all[0].to_string(), "10.1.2.1");
        pool.release(&all[3..4]);
        assert_eq!(pool.take(), Some(all[3]));
        pool.release(&all[1..3]);
        assert_eq!(pool.take(), Some(all[1]));
        assert_eq!(pool.take(), Some(all[2]));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn goes_on_after_a_restart() {
        let mut pool = Pool::new("10.244.0.0/16", ["10.244.1.5".parse().expect("ip")]).expect("pool");
        assert_eq!(pool.take().expect("ip").to_string(), "10.244.1.6");
        assert!(Pool::new("nonsense", []).is_none());
        assert!(Pool::new("fd00::/64", []).is_none());
    }
}
