//! Address ranges. Pure.

use std::net::IpAddr;

/// An address range, `address/prefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: IpAddr,
    prefix: u8,
}

impl Range {
    /// None: not a range.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.trim().split_once('/')?;
        let (base, prefix): (IpAddr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if base.is_ipv4() { 32 } else { 128 }).then_some(Self { base, prefix })
    }

    /// The ranges of a list with commas, one of each family in Kubernetes' notation; what is none is left out.
    #[must_use]
    pub fn list(texts: &str) -> Vec<Self> {
        texts.split(',').filter_map(Self::parse).collect()
    }

    /// Whether it holds an address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (base, ip, bits) = match (self.base, ip) {
            (IpAddr::V4(b), IpAddr::V4(i)) => (u128::from(u32::from(b)), u128::from(u32::from(i)), 32),
            (IpAddr::V6(b), IpAddr::V6(i)) => (u128::from(b), u128::from(i), 128),
            _ => return false,
        };
        self.prefix == 0 || (base ^ ip) >> (bits - u32::from(self.prefix)) == 0
    }

    /// The first address that a host may have: the member's, by convention.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        match self.base {
            IpAddr::V4(b) => IpAddr::V4((u32::from(b) + 1).into()),
            IpAddr::V6(b) => IpAddr::V6((u128::from(b) + 1).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_and_names() {
        let r = Range::parse("10.244.0.0/16").unwrap();
        assert!(r.contains("10.244.255.1".parse().unwrap()) && !r.contains("10.245.0.1".parse().unwrap()));
        assert!(!r.contains("fd00::1".parse().unwrap()));
        assert_eq!(r.first(), "10.244.0.1".parse::<IpAddr>().unwrap());
        let both = Range::list("10.244.0.0/16, fd00:10:244::/64");
        assert!(
            both[1].contains("fd00:10:244::100".parse().unwrap())
                && !both[1].contains("fd00:10:96::1".parse().unwrap())
        );
        assert_eq!(both[1].first(), "fd00:10:244::1".parse::<IpAddr>().unwrap());
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/1", ""] {
            assert_eq!(Range::parse(bad), None);
        }
    }
}
