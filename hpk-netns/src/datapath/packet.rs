//! IP packets: where things are in them, and how addresses and ports are changed. Pure.
//!
//! Nothing here trusts a length field: a packet that does not hold what it claims is not understood (None).

use super::checksum::{self, Sum, pseudo_header};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Protocol numbers.
pub(crate) mod proto {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const SCTP: u8 = 132;
}

/// TCP flag bits.
pub(crate) mod tcp {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;
}

/// Whether a packet is a piece of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// The packet is whole.
    No,
    /// The first piece: it has the transport header.
    First,
    /// A later piece: no transport header.
    Later,
}

/// What a packet's headers say. Offsets are from the packet's start, and lie inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Transport protocol, past any IPv6 extension headers.
    pub(crate) protocol: u8,
    /// Where the transport header starts.
    pub(crate) transport: usize,
    /// Where the transport payload starts (TCP and UDP), else equal to `transport`.
    pub(crate) payload: usize,
    /// Length of the packet by its own header, at most the buffer's.
    pub(crate) total: usize,
    pub(crate) fragment: Fragment,
    /// Ports, zero where there are none.
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    /// TCP flags, zero for others.
    pub(crate) tcp_flags: u8,
}

impl View {
    /// Source address and port.
    pub(crate) fn source(&self) -> SocketAddr {
        SocketAddr::new(self.src, self.src_port)
    }

    /// Destination address and port.
    pub(crate) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.dst, self.dst_port)
    }

    /// Whether ports and checksum of a TCP or UDP header are at hand.
    pub(crate) fn has_ports(&self) -> bool {
        self.fragment != Fragment::Later && matches!(self.protocol, proto::TCP | proto::UDP | proto::SCTP)
    }

    /// Offset of the transport checksum, for TCP and UDP with their header at hand.
    pub(crate) fn checksum_at(&self) -> Option<usize> {
        match (self.fragment, self.protocol) {
            (Fragment::Later, _) => None,
            (_, proto::TCP) => Some(self.transport + 16),
            (_, proto::UDP) => Some(self.transport + 6),
            _ => None,
        }
    }
}

/// A big-endian word.
pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Writes a big-endian word; nothing when it lies outside.
pub(crate) fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// Reads the headers.
pub(crate) fn parse(packet: &[u8]) -> Option<View> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

fn parse_v4(p: &[u8]) -> Option<View> {
    let header = usize::from(p.first()? & 0x0f) * 4;
    let total = usize::from(word(p, 2)?);
    if header < 20 || total < header || total > p.len() {
        return None;
    }
    let src = Ipv4Addr::from(*p.get(12..)?.first_chunk::<4>()?);
    let dst = Ipv4Addr::from(*p.get(16..)?.first_chunk::<4>()?);
    let bits = word(p, 6)?;
    let fragment = match (bits & 0x1fff, bits & 0x2000 != 0) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    transport(
        p,
        View {
            src: src.into(),
            dst: dst.into(),
            protocol: *p.get(9)?,
            transport: header,
            payload: header,
            total,
            fragment,
            src_port: 0,
            dst_port: 0,
            tcp_flags: 0,
        },
    )
}

fn parse_v6(p: &[u8]) -> Option<View> {
    let total = 40 + usize::from(word(p, 4)?);
    if total > p.len() {
        return None;
    }
    let src = Ipv6Addr::from(*p.get(8..)?.first_chunk::<16>()?);
    let dst = Ipv6Addr::from(*p.get(24..)?.first_chunk::<16>()?);
    let mut next = *p.get(6)?;
    let mut at = 40;
    let mut fragment = Fragment::No;
    // Hop-by-hop, routing and destination options have their length in units of 8 bytes beyond the first.
    loop {
        match next {
            0 | 43 | 60 => {
                next = *p.get(at)?;
                at += 8 + usize::from(*p.get(at + 1)?) * 8;
            }
            44 => {
                let bits = word(p, at + 2)?;
                fragment = match (bits >> 3, bits & 1 != 0) {
                    (0, false) => Fragment::No,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                };
                next = *p.get(at)?;
                at += 8;
                if fragment == Fragment::Later {
                    break;
                }
            }
            _ => break,
        }
        if at > total {
            return None;
        }
    }
    transport(
        p,
        View {
            src: src.into(),
            dst: dst.into(),
            protocol: next,
            transport: at,
            payload: at,
            total,
            fragment,
            src_port: 0,
            dst_port: 0,
            tcp_flags: 0,
        },
    )
}

fn transport(p: &[u8], mut view: View) -> Option<View> {
    if view.fragment == Fragment::Later {
        return Some(view);
    }
    let at = view.transport;
    let header = match view.protocol {
        proto::TCP => {
            view.tcp_flags = *p.get(at + 13)?;
            usize::from(p.get(at + 12)? >> 4) * 4
        }
        proto::UDP => 8,
        proto::SCTP => 12,
        _ => return Some(view),
    };
    view.src_port = word(p, at)?;
    view.dst_port = word(p, at + 2)?;
    view.payload = at + header;
    let least = if view.protocol == proto::TCP { 20 } else { header };
    (header >= least && view.payload <= view.total).then_some(view)
}

/// Changes source and destination, in the IP header and the ports, with the checksums that cover them. A port
/// is left alone where the packet has none. `partial`: the transport checksum holds the pseudo header's sum only.
pub(crate) fn rewrite(packet: &mut [u8], view: &View, src: SocketAddr, dst: SocketAddr, partial: bool) {
    match (src.ip(), dst.ip(), view.src) {
        (IpAddr::V4(s), IpAddr::V4(d), IpAddr::V4(_)) => {
            let old = word(packet, 10).unwrap_or(0);
            let sum = checksum::updated(old, |c| {
                c.minus_address(view.src).minus_address(view.dst).address(s.into()).address(d.into())
            });
            set_word(packet, 10, sum);
            set_bytes(packet, 12, &s.octets());
            set_bytes(packet, 16, &d.octets());
        }
        (IpAddr::V6(s), IpAddr::V6(d), IpAddr::V6(_)) => {
            set_bytes(packet, 8, &s.octets());
            set_bytes(packet, 24, &d.octets());
        }
        // Families are never mixed: services translate to endpoints of their own family.
        _ => return,
    }
    if view.has_ports() {
        set_word(packet, view.transport, src.port());
        set_word(packet, view.transport + 2, dst.port());
    }
    let Some(at) = view.checksum_at() else { return };
    let old = word(packet, at).unwrap_or(0);
    if view.protocol == proto::UDP && old == 0 && !partial {
        return; // no checksum (RFC 768)
    }
    let addresses = |c: Sum| c.minus_address(view.src).minus_address(view.dst).address(src.ip()).address(dst.ip());
    let new = if partial {
        addresses(Sum::default().word(old)).folded()
    } else {
        let full = checksum::updated(old, |c| {
            addresses(c).minus_word(view.src_port).minus_word(view.dst_port).word(src.port()).word(dst.port())
        });
        if view.protocol == proto::UDP && full == 0 { 0xffff } else { full }
    };
    set_word(packet, at, new);
}

fn set_bytes(packet: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = packet.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Makes the transport checksum partial (the pseudo header's sum), for a packet whose integrity is known: what the
/// receiving kernel then does is nothing at all. False when there is none to make so.
pub(crate) fn make_partial(packet: &mut [u8], view: &View) -> bool {
    let Some(at) = view.checksum_at() else { return false };
    if view.fragment != Fragment::No || (view.protocol == proto::UDP && word(packet, at) == Some(0)) {
        return false;
    }
    let sum = pseudo_header(view.src, view.dst, view.protocol, view.total - view.transport);
    set_word(packet, at, sum.folded());
    true
}

/// Computes the transport checksum in full, for an interface without checksum offload.
pub(crate) fn complete(packet: &mut [u8], view: &View) {
    let Some(at) = view.checksum_at() else { return };
    if view.fragment != Fragment::No || (view.protocol == proto::UDP && word(packet, at) == Some(0)) {
        return;
    }
    set_word(packet, at, 0);
    let covered = packet.get(view.transport..view.total).unwrap_or_default();
    let sum = pseudo_header(view.src, view.dst, view.protocol, view.total - view.transport).bytes(covered).checksum();
    set_word(packet, at, if view.protocol == proto::UDP && sum == 0 { 0xffff } else { sum });
}

/// The IPv4 header's own checksum, written anew.
pub(crate) fn fix_v4_header(packet: &mut [u8]) {
    set_word(packet, 10, 0);
    let length = usize::from(packet.first().copied().unwrap_or(0) & 0x0f) * 4;
    let sum = Sum::default().bytes(packet.get(..length).unwrap_or_default()).checksum();
    set_word(packet, 10, sum);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A whole, correct packet.
    pub(crate) fn build(src: SocketAddr, dst: SocketAddr, protocol: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let transport_len = if protocol == proto::TCP { 20 } else { 8 } + payload.len();
        let mut p = match (src.ip(), dst.ip()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let mut p = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
                p.extend(s.octets());
                p.extend(d.octets());
                set_word(&mut p, 2, u16::try_from(20 + transport_len).unwrap());
                fix_v4_header(&mut p);
                p
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let mut p = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
                p.extend(s.octets());
                p.extend(d.octets());
                set_word(&mut p, 4, u16::try_from(transport_len).unwrap());
                p
            }
            _ => panic!("mixed families"),
        };
        p.extend(src.port().to_be_bytes());
        p.extend(dst.port().to_be_bytes());
        if protocol == proto::TCP {
            p.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            p.extend(u16::try_from(transport_len).unwrap().to_be_bytes());
            p.extend([0xff, 0xff]);
        }
        p.extend_from_slice(payload);
        let view = parse(&p).unwrap();
        complete(&mut p, &view);
        p
    }

    /// Both checksums are right.
    pub(crate) fn is_correct(packet: &[u8]) -> bool {
        let view = parse(packet).unwrap();
        let header_ok = view.src.is_ipv6() || Sum::default().bytes(&packet[..20]).folded() == 0xffff;
        let covered = &packet[view.transport..view.total];
        let sum = pseudo_header(view.src, view.dst, view.protocol, covered.len()).bytes(covered).folded();
        header_ok && sum == 0xffff
    }

    pub(crate) fn endpoint() -> impl Strategy<Value = SocketAddr> {
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port))
    }

    fn endpoint6() -> impl Strategy<Value = SocketAddr> {
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(IpAddr::from(ip), port))
    }

    fn four() -> impl Strategy<Value = [SocketAddr; 4]> {
        prop_oneof![
            [endpoint(), endpoint(), endpoint(), endpoint()],
            [endpoint6(), endpoint6(), endpoint6(), endpoint6()]
        ]
    }

    proptest! {
        #[test]
        fn rewriting_keeps_checksums_right_and_is_undone(ends in four(), udp: bool, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let [src, dst, src2, dst2] = ends;
            let protocol = if udp { proto::UDP } else { proto::TCP };
            let original = build(src, dst, protocol, tcp::SYN, &payload);
            prop_assert!(is_correct(&original));
            let mut p = original.clone();
            let view = parse(&p).unwrap();
            rewrite(&mut p, &view, src2, dst2, false);
            prop_assert!(is_correct(&p));
            let view = parse(&p).unwrap();
            prop_assert_eq!((view.source(), view.destination()), (src2, dst2));
            rewrite(&mut p, &view, src, dst, false);
            prop_assert_eq!(p, original);
        }

        #[test]
        fn a_partial_checksum_stays_the_pseudo_headers(ends in four(), udp: bool, payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let [src, dst, src2, dst2] = ends;
            let protocol = if udp { proto::UDP } else { proto::TCP };
            let mut p = build(src, dst, protocol, 0, &payload);
            let view = parse(&p).unwrap();
            prop_assert!(make_partial(&mut p, &view));
            rewrite(&mut p, &view, src2, dst2, true);
            // What the kernel would do: complete from the partial sum.
            let view = parse(&p).unwrap();
            let at = view.checksum_at().unwrap();
            let sum = Sum::default().bytes(&p[view.transport..view.total]).checksum();
            set_word(&mut p, at, if udp && sum == 0 { 0xffff } else { sum });
            prop_assert!(is_correct(&p));
        }

        #[test]
        fn no_bytes_confuse_it(bytes in proptest::collection::vec(any::<u8>(), 0..120), version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()]) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = version; }
            if let Some(view) = parse(&bytes) {
                prop_assert!(view.transport <= view.payload && view.total <= bytes.len());
                prop_assert!(!view.has_ports() || view.payload <= view.total);
                let _ = make_partial(&mut bytes, &view);
                complete(&mut bytes, &view);
            }
        }
    }

    #[test]
    fn fragments_have_no_ports() {
        let src = "10.0.0.1:1".parse().unwrap();
        let mut p = build(src, "10.0.0.2:2".parse().unwrap(), proto::UDP, 0, &[0; 32]);
        set_word(&mut p, 6, 0x2000);
        assert_eq!(parse(&p).unwrap().fragment, Fragment::First);
        set_word(&mut p, 6, 0x0010);
        let view = parse(&p).unwrap();
        assert_eq!((view.fragment, view.dst_port, view.has_ports()), (Fragment::Later, 0, false));
    }
}
