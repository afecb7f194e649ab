//! The Internet checksum (RFC 1071) and its incremental change (RFC 1624). Pure.

use std::net::IpAddr;

/// A one's complement sum under way. Words are big endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last byte is padded with zero, so only the last part may be odd.
    pub(crate) fn bytes(mut self, data: &[u8]) -> Self {
        let mut chunks = data.chunks_exact(2);
        for pair in &mut chunks {
            if let [a, b] = pair {
                self.0 += u64::from(u16::from_be_bytes([*a, *b]));
            }
        }
        if let [last] = chunks.remainder() {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    /// Adds one word.
    pub(crate) fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Adds an address.
    pub(crate) fn address(self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    /// Takes away what was added before (RFC 1624, equation 3: adds the complement).
    pub(crate) fn minus_word(self, word: u16) -> Self {
        self.word(!word)
    }

    /// As [`Self::minus_word`], for an address.
    pub(crate) fn minus_address(self, ip: IpAddr) -> Self {
        let words = |octets: &[u8]| Self::default().bytes(octets).folded();
        let sum = match ip {
            IpAddr::V4(v4) => words(&v4.octets()),
            IpAddr::V6(v6) => words(&v6.octets()),
        };
        self.minus_word(sum)
    }

    /// The sum in 16 bits, not complemented: what a partial checksum field holds.
    pub(crate) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(0)
    }

    /// The checksum field.
    pub(crate) fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Sum of the pseudo header of TCP and UDP (RFC 793, RFC 8200 §8.1).
pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Sum {
    // A length above 65535 does not occur: packets are bounded by the IP total length.
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    Sum::default().address(src).address(dst).word(u16::from(protocol)).word(length)
}

/// A full checksum after words of what it covers changed.
pub(crate) fn updated(old: u16, change: impl Fn(Sum) -> Sum) -> u16 {
    !change(Sum::default().word(!old)).folded()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §3's example.
    #[test]
    fn rfc_example() {
        assert_eq!(Sum::default().bytes(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), 0xddf2);
        assert_eq!(Sum::default().bytes(&[0x12]).folded(), 0x1200);
    }

    proptest! {
        #[test]
        fn a_packet_with_its_checksum_sums_to_all_ones(mut data in proptest::collection::vec(any::<u8>(), 2..200)) {
            data[0] = 0;
            data[1] = 0;
            let sum = Sum::default().bytes(&data).checksum();
            data[..2].copy_from_slice(&sum.to_be_bytes());
            prop_assert_eq!(Sum::default().bytes(&data).folded(), 0xffff);
        }

        #[test]
        fn incremental_equals_whole(a: [u8; 4], b: [u8; 4], p: u16, q: u16, rest in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (a, b) = (IpAddr::from(a), IpAddr::from(b));
            // All-zero data has two representations of zero; one non-zero word rules that out, as every real packet does.
            let base = Sum::default().bytes(&rest).word(0x4500);
            let old = base.address(a).word(p).checksum();
            let new = updated(old, |s| s.minus_address(a).address(b).minus_word(p).word(q));
            prop_assert_eq!(new, base.address(b).word(q).checksum());
        }
    }
}
