//! Joining packets that follow each other in one flow into one large packet for the TUN (the reverse of
//! [`super::segment`]): one write and one trip through the kernel instead of many. Pure.
//!
//! TCP: equal headers but for sequence number, PSH and IPv4 id; each continues where the former ended; all of one size,
//! only the last may be shorter. UDP: equal headers, one size, the last may be shorter.
//!
//! Packets are joined as they come from the network, before anything is decided about them: a decision is then made once
//! for all pieces of a large packet, as it is on the way out.

use super::packet::{self, View, proto, set_word, tcp, word};
use super::vnet::{self, Gso, Header};

/// Largest joined packet, bytes: the IP total length is 16 bits. Not less: a packet that the other end's kernel left uncut
/// comes back as the one that it was, where a smaller bound would make two of it, and two acknowledgements.
const MAX: usize = 65_535;

/// A packet under construction, with room for its virtio header in front.
#[derive(Debug, Default)]
pub(crate) struct Coalescer {
    buffer: Vec<u8>,
    view: Option<View>,
    /// Payload of the first piece.
    size: usize,
    pieces: usize,
    /// A short or pushed piece came: nothing may follow.
    closed: bool,
}

impl Coalescer {
    /// Tries to add a packet; false: [`Self::finish`] first, then add again.
    pub(crate) fn push(&mut self, packet: &[u8], view: &View) -> bool {
        let packet = packet.get(..view.total).unwrap_or_default();
        let Some(held) = self.view else {
            self.start(packet, view);
            return true;
        };
        if self.closed || !self.continues(&held, packet, view) {
            return false;
        }
        let payload = packet.get(view.payload..).unwrap_or_default();
        self.buffer.extend_from_slice(payload);
        self.pieces += 1;
        self.closed = payload.len() < self.size || ends(view);
        if view.protocol == proto::TCP {
            // PSH of the last piece is the joined packet's; the newest acknowledgement is equal by `continues`.
            if let Some(flags) = self.buffer.get_mut(vnet::LEN + held.transport + 13) {
                *flags |= view.tcp_flags & tcp::PSH;
            }
        }
        true
    }

    fn start(&mut self, packet: &[u8], view: &View) {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; vnet::LEN]);
        self.buffer.extend_from_slice(packet);
        self.view = Some(*view);
        self.size = view.total - view.payload;
        self.pieces = 1;
        let plain = view.fragment == packet::Fragment::No && self.size > 0;
        let joinable = match view.protocol {
            proto::TCP => view.tcp_flags & !(tcp::ACK | tcp::PSH) == 0 && !ends(view),
            proto::UDP => word(packet, view.transport + 6) != Some(0),
            _ => false,
        };
        // IPv4 options and IPv6 extension headers are left alone.
        let bare = view.transport == if view.src.is_ipv4() { 20 } else { 40 };
        self.closed = !(plain && joinable && bare);
    }

    fn continues(&self, held: &View, packet: &[u8], view: &View) -> bool {
        let size = view.total - view.payload;
        let Some(first) = self.buffer.get(vnet::LEN..vnet::LEN + held.payload) else { return false };
        if size == 0 || size > self.size || self.buffer.len() - vnet::LEN + size > MAX || self.pieces >= 64 {
            return false;
        }
        if (held.payload, held.transport, held.protocol) != (view.payload, view.transport, view.protocol)
            || held.source() != view.source()
            || held.destination() != view.destination()
            || view.fragment != packet::Fragment::No
        {
            return false;
        }
        // Type of service and time to live (IPv4), class, flow and hop limit (IPv6).
        let same = |at: usize| first.get(at) == packet.get(at);
        let header_same =
            if view.src.is_ipv4() { same(1) && same(6) && same(7) && same(8) } else { (0..4).all(same) && same(7) };
        if !header_same {
            return false;
        }
        let at = view.transport;
        if view.protocol == proto::UDP {
            return word(packet, at + 6) != Some(0);
        }
        let sequence = |p: &[u8]| p.get(at + 4..).and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_be_bytes(*b));
        let (Some(start), Some(this)) = (sequence(first), sequence(packet)) else { return false };
        let carried = u32::try_from(self.buffer.len() - vnet::LEN - held.payload).unwrap_or(u32::MAX);
        // Acknowledgement, data offset, flags but PSH, window and options must be equal.
        view.tcp_flags & !tcp::PSH == held.tcp_flags & !tcp::PSH
            && this == start.wrapping_add(carried)
            && first.get(at + 8..at + 13) == packet.get(at + 8..at + 13)
            && first.get(at + 14..at + 16) == packet.get(at + 14..at + 16)
            && first.get(at + 18..) == packet.get(at + 18..view.payload)
    }

    /// The packet to be written, its virtio header in front; None when none is held, or `admit` refuses it. `admit` may
    /// rewrite its addresses and ports. With `offload` false, the checksum is complete and nothing may have been joined
    /// ([`Self::push`] once at a time).
    pub(crate) fn finish(&mut self, offload: bool, admit: impl FnOnce(&mut [u8], &View) -> bool) -> Option<&[u8]> {
        let view = self.view.take()?;
        let (head, packet) = self.buffer.split_at_mut_checked(vnet::LEN)?;
        let total = packet.len();
        let mut header = Header::default();
        let view = View { total, ..view };
        if self.pieces > 1 {
            let length = u16::try_from(total).unwrap_or(u16::MAX);
            if view.src.is_ipv4() {
                set_word(packet, 2, length);
                packet::fix_v4_header(packet);
            } else {
                set_word(packet, 4, length.saturating_sub(40));
            }
            if view.protocol == proto::UDP {
                set_word(packet, view.transport + 4, u16::try_from(total - view.transport).unwrap_or(u16::MAX));
            }
            header.gso = match (view.protocol, view.src.is_ipv4()) {
                (proto::UDP, _) => Gso::Udp,
                (_, true) => Gso::Tcp4,
                (_, false) => Gso::Tcp6,
            };
            header.gso_size = u16::try_from(self.size).unwrap_or(u16::MAX);
            header.header_len = u16::try_from(view.payload).unwrap_or(0);
        }
        if !admit(packet, &view) {
            return None;
        }
        let view = packet::parse(packet)?;
        if !offload {
            packet::complete(packet, &view);
            return self.buffer.get(vnet::LEN..);
        }
        if packet::make_partial(packet, &view) {
            header.needs_checksum = true;
            header.csum_start = u16::try_from(view.transport).unwrap_or(0);
            header.csum_offset = if view.protocol == proto::TCP { 16 } else { 6 };
        }
        head.copy_from_slice(&header.encode());
        Some(&self.buffer)
    }
}

/// Flags after which nothing may be joined.
fn ends(view: &View) -> bool {
    view.protocol == proto::TCP && view.tcp_flags & (tcp::PSH | tcp::FIN | tcp::SYN | tcp::RST) != 0
}

#[cfg(test)]
mod tests {
    use super::super::packet::parse;
    use super::super::packet::tests::build;
    use super::super::segment::Segments;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Cut and joined again is the same packet: what the two ends of a flow do together.
        #[test]
        fn joining_undoes_cutting((len, size) in prop_oneof![(1..20_000_usize, 400..1400_u16), (60_000..65_470_usize, 1100..1400_u16)], udp: bool, v6: bool) {
            let payload: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let (src, dst) = if v6 { ("[fd00::1]:5", "[fd00::2]:6") } else { ("10.0.0.1:5", "10.0.0.2:6") };
            let protocol = if udp { proto::UDP } else { proto::TCP };
            let mut whole = build(src.parse().unwrap(), dst.parse().unwrap(), protocol, tcp::PSH | tcp::ACK, &payload);
            let gso = if udp { Gso::Udp } else if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
            let view = parse(&whole).unwrap();
            let header = Header { gso, gso_size: size, ..Header::default() };
            let mut segments = Segments::new(&whole, &view, &header);
            let mut joined = Coalescer::default();
            let mut piece = Vec::new();
            while let Some(len) = segments.next_len() {
                piece.resize(len, 0);
                segments.write_next(&mut piece);
                prop_assert!(joined.push(&piece, &parse(&piece).unwrap()));
            }
            // Its service's address is put back once, on the joined packet.
            let service = if v6 { "[fd00::9]:80" } else { "10.0.0.9:80" }.parse().unwrap();
            let rewrite = |p: &mut [u8], view: &View| {
                packet::rewrite(p, view, service, view.destination(), false);
                true
            };
            let written = joined.finish(true, rewrite).unwrap().to_vec();
            let (got, packet) = Header::decode(&written).unwrap();
            rewrite(&mut whole, &view);
            let view = parse(&whole).unwrap();
            packet::make_partial(&mut whole, &view);
            prop_assert_eq!(packet, &whole[..]);
            prop_assert!(got.needs_checksum);
            let cut = len > usize::from(size);
            prop_assert_eq!(got.gso, if cut { gso } else { Gso::None });
            prop_assert!(joined.finish(true, |_, _| true).is_none());
        }
    }

    #[test]
    fn what_does_not_follow_is_not_joined() {
        let (a, b) = ("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap());
        let tcp_packet = |flags| build(a, b, proto::TCP, flags, &[1; 100]);
        let first = tcp_packet(tcp::ACK);
        let view = parse(&first).unwrap();
        // Same sequence number again, another flow, a SYN, another protocol.
        let others = [
            tcp_packet(tcp::ACK),
            build(a, "10.0.0.2:7".parse().unwrap(), proto::TCP, tcp::ACK, &[1; 100]),
            tcp_packet(tcp::SYN),
            build(a, b, proto::UDP, 0, &[1; 100]),
        ];
        for other in others {
            let mut c = Coalescer::default();
            assert!(c.push(&first, &view));
            assert!(!c.push(&other, &parse(&other).unwrap()));
        }
    }

    #[test]
    fn what_is_not_admitted_is_gone() {
        let packet = build("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap(), proto::TCP, tcp::ACK, &[1; 9]);
        let view = parse(&packet).unwrap();
        let mut c = Coalescer::default();
        assert!(c.push(&packet, &view));
        assert_eq!(c.finish(true, |_, _| false), None);
        assert_eq!(c.finish(true, |_, _| true), None);
    }

    #[test]
    fn without_offload_the_checksum_is_complete() {
        let (a, b) = ("10.0.0.1:5".parse().unwrap(), "10.0.0.2:6".parse().unwrap());
        let right = build(a, b, proto::TCP, tcp::ACK, &[1; 33]);
        let mut spoilt = right.clone();
        spoilt[36] ^= 0xff;
        let mut c = Coalescer::default();
        assert!(c.push(&spoilt, &parse(&spoilt).unwrap()));
        assert_eq!(c.finish(false, |_, _| true), Some(&right[..]));
    }
}
