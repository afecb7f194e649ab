//! Cutting a packet that the kernel left uncut (TSO, USO) into packets of the interface's size. Pure.
//!
//! Transport checksums of the pieces are not computed: between datapaths the encryption vouches for the bytes, and
//! the receiving datapath hands them to its kernel as already checked ([`super::packet::make_partial`]).

use super::checksum::Sum;
use super::packet::{View, proto, set_word, tcp, word};
use super::vnet::{Gso, Header};

/// The pieces of one packet, each written into a buffer of the caller's.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    packet: &'a [u8],
    view: View,
    /// Payload bytes of each piece but the last.
    size: usize,
    next: usize,
    index: u16,
    /// Sum of the IPv4 header but for what differs from piece to piece: length, identification, checksum.
    header: Sum,
}

impl<'a> Segments<'a> {
    /// A packet that is not to be cut is its own only piece.
    pub(crate) fn new(packet: &'a [u8], view: &View, header: &Header) -> Self {
        let payload = view.total.saturating_sub(view.payload);
        let cut = header.gso != Gso::None && header.gso_size > 0 && view.checksum_at().is_some();
        let size = if cut { usize::from(header.gso_size) } else { payload.max(1) };
        let packet = packet.get(..view.total).unwrap_or_default();
        let header = match packet.get(..view.transport) {
            Some(header) if cut && view.src.is_ipv4() => [2, 4, 10]
                .into_iter()
                .fold(Sum::default().bytes(header), |sum, at| sum.minus_word(word(header, at).unwrap_or(0))),
            _ => Sum::default(),
        };
        Self { packet, view: *view, size, next: view.payload, index: 0, header }
    }

    /// Bytes of the next piece; None: there is none.
    pub(crate) fn next_len(&self) -> Option<usize> {
        let total = self.packet.len();
        match (self.index, self.next < total) {
            // The only piece, which may have no payload.
            (0, _) if self.next + self.size >= total => Some(total),
            (_, true) => Some(self.view.payload + self.size.min(total - self.next)),
            _ => None,
        }
    }

    /// Writes the next piece over `out`, which has [`Self::next_len`] bytes.
    pub(crate) fn write_next(&mut self, out: &mut [u8]) {
        let total = self.packet.len();
        if self.index == 0 && self.next + self.size >= total {
            out.copy_from_slice(self.packet);
            (self.next, self.index) = (total, 1);
            return;
        }
        let end = (self.next + self.size).min(total);
        let (Some((head, body)), Some(payload)) =
            (out.split_at_mut_checked(self.view.payload), self.packet.get(self.next..end))
        else {
            return;
        };
        head.copy_from_slice(self.packet.get(..self.view.payload).unwrap_or_default());
        body.copy_from_slice(payload);
        self.patch(out, end == total);
        self.next = end;
        self.index = self.index.wrapping_add(1);
    }

    fn patch(&self, out: &mut [u8], last: bool) {
        let length = u16::try_from(out.len()).unwrap_or(u16::MAX);
        let at = self.view.transport;
        if self.view.src.is_ipv4() {
            // From what is known, not from `out`: reading back what was just written would wait for it.
            let id = word(self.packet, 4).unwrap_or(0).wrapping_add(self.index);
            set_word(out, 2, length);
            set_word(out, 4, id);
            set_word(out, 10, self.header.word(length).word(id).checksum());
        } else {
            set_word(out, 4, length.saturating_sub(40));
        }
        if self.view.protocol == proto::UDP {
            set_word(out, at + 4, length.saturating_sub(u16::try_from(at).unwrap_or(0)));
            return;
        }
        let done = u32::try_from(self.next - self.view.payload).unwrap_or(0);
        if let Some(place) = out.get_mut(at + 4..at + 8)
            && let Some(bytes) = place.first_chunk_mut::<4>()
        {
            *bytes = u32::from_be_bytes(*bytes).wrapping_add(done).to_be_bytes();
        }
        if let Some(flags) = out.get_mut(at + 13) {
            // FIN and PSH belong to the last piece, CWR to the first (RFC 3168).
            if !last {
                *flags &= !(tcp::FIN | tcp::PSH);
            }
            if self.index > 0 {
                *flags &= !tcp::CWR;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::tests::build;
    use super::super::packet::{complete, parse};
    use super::*;
    use proptest::prelude::*;

    fn pieces(packet: &[u8], header: &Header) -> Vec<Vec<u8>> {
        let view = parse(packet).unwrap();
        let mut segments = Segments::new(packet, &view, header);
        let mut all = Vec::new();
        let mut out = Vec::new();
        while let Some(len) = segments.next_len() {
            out.resize(len, 0);
            segments.write_next(&mut out);
            all.push(out.clone());
        }
        all
    }

    proptest! {
        #[test]
        fn pieces_hold_all_bytes_once_in_order(len in 0..9000_usize, size in 1..1500_u16, udp: bool, v6: bool) {
            let payload: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (src, dst) = if v6 { ("[fd00::1]:5", "[fd00::2]:6") } else { ("10.0.0.1:5", "10.0.0.2:6") };
            let protocol = if udp { proto::UDP } else { proto::TCP };
            let whole = build(src.parse().unwrap(), dst.parse().unwrap(), protocol, tcp::FIN | tcp::PSH | tcp::ACK | tcp::CWR, &payload);
            let gso = if udp { Gso::Udp } else if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
            let all = pieces(&whole, &Header { gso, gso_size: size, ..Header::default() });
            let (mut joined, count) = (Vec::new(), all.len());
            prop_assert_eq!(count, len.div_ceil(usize::from(size)).max(1));
            for (n, piece) in all.iter().enumerate() {
                let view = parse(piece).expect("a piece is a packet");
                prop_assert_eq!(view.total, piece.len());
                if !udp {
                    let seq = u32::from_be_bytes(*piece[view.transport + 4..].first_chunk().unwrap());
                    prop_assert_eq!(seq as usize, 1 + joined.len());
                    prop_assert_eq!(view.tcp_flags & tcp::FIN != 0, n + 1 == count);
                    prop_assert_eq!(view.tcp_flags & tcp::CWR != 0, n == 0);
                } else {
                    prop_assert_eq!(usize::from(word(piece, view.transport + 4).unwrap()), piece.len() - view.transport);
                }
                joined.extend_from_slice(&piece[view.payload..]);
                // A correct packet once its checksum is completed.
                let mut whole_piece = piece.clone();
                complete(&mut whole_piece, &view);
                prop_assert!(super::super::packet::tests::is_correct(&whole_piece));
            }
            prop_assert_eq!(joined, payload);
        }
    }

    #[test]
    fn what_is_not_to_be_cut_is_not_touched() {
        let whole =
            build("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap(), proto::TCP, tcp::SYN, &[7; 3000]);
        assert_eq!(pieces(&whole, &Header::default()), [whole]);
    }
}
