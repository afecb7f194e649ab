//! Which pods have which addresses for their own.

use hpk_api::ids::PodUid;
use std::collections::HashMap;
use std::net::IpAddr;

#[derive(Debug, Default)]
pub(super) struct Addresses {
    by_pod: HashMap<PodUid, Vec<IpAddr>>,
    by_ip: HashMap<IpAddr, Vec<PodUid>>,
}

impl Addresses {
    /// The pod has these, and no others.
    pub(super) fn set(&mut self, uid: &PodUid, all: impl Iterator<Item = IpAddr>) {
        let mut all: Vec<IpAddr> = all.collect();
        all.sort_unstable();
        all.dedup();
        if self.by_pod.get(uid).map_or(&[][..], Vec::as_slice) == all {
            return;
        }
        for ip in self.by_pod.remove(uid).unwrap_or_default() {
            if let Some(pods) = self.by_ip.get_mut(&ip) {
                pods.retain(|other| other != uid);
                if pods.is_empty() {
                    self.by_ip.remove(&ip);
                }
            }
        }
        for ip in &all {
            self.by_ip.entry(*ip).or_default().push(uid.clone());
        }
        if !all.is_empty() {
            self.by_pod.insert(uid.clone(), all);
        }
    }

    /// Whether another pod than `uid` has this address.
    pub(super) fn is_anothers(&self, ip: IpAddr, uid: &PodUid) -> bool {
        self.by_ip.get(&ip).is_some_and(|pods| pods.iter().any(|other| other != uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_anothers_as_long_as_that_one_has_it() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let (a, b) = (&PodUid::from("a"), &PodUid::from("b"));
        let mut addresses = Addresses::default();
        addresses.set(a, [ip(1), ip(2), ip(1)].into_iter());
        assert!(addresses.is_anothers(ip(1), b) && !addresses.is_anothers(ip(1), a));
        addresses.set(b, [ip(2)].into_iter());
        assert!(addresses.is_anothers(ip(2), a));
        addresses.set(a, [ip(3)].into_iter());
        assert!(!addresses.is_anothers(ip(1), b) && !addresses.is_anothers(ip(2), b));
        addresses.set(a, std::iter::empty());
        addresses.set(b, std::iter::empty());
        assert!(addresses.by_pod.is_empty() && addresses.by_ip.is_empty());
    }
}
