//! `struct virtio_net_hdr`, what a TUN opened with IFF_VNET_HDR puts before each packet
//! (linux/virtio_net.h; 10 bytes, little endian on the machines that we run on). Pure.

/// Length of the header, bytes.
pub(crate) const LEN: usize = 10;

/// Checksum field holds the pseudo header's sum; the rest is to be added by whoever needs it.
const NEEDS_CSUM: u8 = 1;
/// The ECN bit of `gso_type`.
const ECN: u8 = 0x80;

/// How a packet that is larger than the MTU is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gso {
    /// Not at all.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one size, one after the other.
    Udp,
}

impl Gso {
    fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Tcp4 => 1,
            Self::Tcp6 => 4,
            Self::Udp => 5,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// The checksum at `csum_start + csum_offset` is partial.
    pub(crate) needs_checksum: bool,
    /// How to cut.
    pub(crate) gso: Gso,
    /// Network and transport header together, bytes (a hint).
    pub(crate) header_len: u16,
    /// Payload of each piece, bytes.
    pub(crate) gso_size: u16,
    /// Start of what the checksum covers.
    pub(crate) csum_start: u16,
    /// Place of the checksum from there.
    pub(crate) csum_offset: u16,
}

impl Header {
    /// None: too short, or a kind that we did not offer to take.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (&[flags, kind, h0, h1, s0, s1, c0, c1, o0, o1], rest) = bytes.split_first_chunk::<LEN>()?;
        let gso = match kind & !ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            _ => return None,
        };
        let header = Self {
            needs_checksum: flags & NEEDS_CSUM != 0,
            gso,
            header_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([s0, s1]),
            csum_start: u16::from_le_bytes([c0, c1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        };
        Some((header, rest))
    }

    /// As bytes.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let ([h0, h1], [s0, s1]) = (self.header_len.to_le_bytes(), self.gso_size.to_le_bytes());
        let ([c0, c1], [o0, o1]) = (self.csum_start.to_le_bytes(), self.csum_offset.to_le_bytes());
        [if self.needs_checksum { NEEDS_CSUM } else { 0 }, self.gso.number(), h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(needs_checksum: bool, kind in 0..4_u8, a: u16, b: u16, c: u16, d: u16) {
            let gso = [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp][usize::from(kind)];
            let header = Header { needs_checksum, gso, header_len: a, gso_size: b, csum_start: c, csum_offset: d };
            let mut bytes = header.encode().to_vec();
            bytes.push(7);
            prop_assert_eq!(Header::decode(&bytes), Some((header, &[7_u8][..])));
        }

        #[test]
        fn no_bytes_confuse_it(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            let _ = Header::decode(&bytes);
        }
    }
}
