//! Which endpoint a client of a listener gets. Pure; randomness and time are given.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// Clients that are remembered for affinity; beyond, those that were silent longest go first.
const CLIENTS: usize = 10_000;

/// One listener's endpoints and who sticks to which.
#[derive(Debug, Default)]
pub(super) struct Spread {
    endpoints: Vec<SocketAddr>,
    /// Seconds.
    affinity: Option<u32>,
    /// Client to endpoint, and when it last came (seconds).
    stuck: HashMap<IpAddr, (SocketAddr, u64)>,
}

impl Spread {
    /// Replaces endpoints and affinity. Clients of endpoints that are still there stay with them.
    pub(super) fn set(&mut self, endpoints: Vec<SocketAddr>, affinity: Option<u32>) {
        if affinity.is_none() {
            self.stuck.clear();
        }
        self.stuck.retain(|_, (endpoint, _)| endpoints.contains(endpoint));
        (self.endpoints, self.affinity) = (endpoints, affinity);
    }

    /// Whether there is anybody to go to.
    pub(super) fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// Whether an endpoint is still one.
    pub(super) fn has(&self, endpoint: SocketAddr) -> bool {
        self.endpoints.contains(&endpoint)
    }

    /// The endpoint for a new connection; None: there is none. `now` in seconds.
    pub(super) fn choose(&mut self, client: IpAddr, now: u64, random: u64) -> Option<SocketAddr> {
        let limit = self.affinity.map(u64::from);
        if let (Some(limit), Some((endpoint, last))) = (limit, self.stuck.get_mut(&client))
            && now.saturating_sub(*last) <= limit
        {
            *last = now;
            return Some(*endpoint);
        }
        let count = u64::try_from(self.endpoints.len()).ok().filter(|n| *n > 0)?;
        let endpoint = *self.endpoints.get(usize::try_from(random % count).ok()?)?;
        if let Some(limit) = limit {
            if self.stuck.len() >= CLIENTS {
                self.make_room(now, limit);
            }
            self.stuck.insert(client, (endpoint, now));
        }
        Some(endpoint)
    }

    fn make_room(&mut self, now: u64, limit: u64) {
        self.stuck.retain(|_, (_, last)| now.saturating_sub(*last) <= limit);
        if self.stuck.len() >= CLIENTS {
            let mut times: Vec<u64> = self.stuck.values().map(|(_, last)| *last).collect();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or(now);
            self.stuck.retain(|_, (_, last)| *last > middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|e| e.parse().unwrap()).collect()
    }

    fn client(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    #[test]
    fn all_endpoints_get_their_share() {
        let mut s = Spread::default();
        assert_eq!(s.choose(client(1), 0, 7), None);
        s.set(ends(&["10.244.1.1:80", "10.244.1.2:80"]), None);
        let chosen: std::collections::HashSet<_> = (0..4).map(|r| s.choose(client(1), 0, r)).collect();
        assert_eq!(chosen.len(), 2);
    }

    #[test]
    fn a_client_stays_for_its_time_and_while_its_endpoint_does() {
        let mut s = Spread::default();
        let all = ends(&["10.244.1.1:80", "10.244.1.2:80"]);
        s.set(all.clone(), Some(100));
        let first = s.choose(client(1), 0, 0);
        assert_eq!(s.choose(client(1), 100, 1), first);
        assert_ne!(s.choose(client(2), 100, 1), first, "another client has its own");
        assert_eq!(s.choose(client(1), 200, 1), first, "renewed at 100");
        assert_ne!(s.choose(client(1), 301, 1), first, "over");
        s.set(all[..1].to_vec(), Some(100));
        assert_eq!(s.choose(client(1), 302, 1), Some(all[0]));
    }

    #[test]
    fn memory_is_bounded() {
        let mut s = Spread::default();
        s.set(ends(&["10.244.1.1:80"]), Some(1000));
        for n in 0..u32::try_from(CLIENTS).unwrap() + 500 {
            s.choose(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), u64::from(n / 100), 0);
        }
        assert!(s.stuck.len() <= CLIENTS);
    }
}
