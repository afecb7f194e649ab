//! The answer to a packet that goes nowhere: TCP reset or ICMP unreachable, so that a client knows at once. Pure.

use super::checksum::{Sum, pseudo_header};
use super::packet::{self, Fragment, View, proto, set_word, tcp};
use std::net::IpAddr;

/// The answer, as if its destination had sent it; None: answers to errors and later fragments are never sent.
pub(crate) fn refuse(original: &[u8], view: &View) -> Option<Vec<u8>> {
    if view.fragment == Fragment::Later {
        return None;
    }
    match view.protocol {
        proto::TCP => reset(original, view),
        proto::UDP | proto::SCTP => unreachable(original, view, Why::Port),
        _ => None,
    }
}

/// The answer to a packet that no way leads on from here.
pub(crate) fn no_way(original: &[u8], view: &View) -> Option<Vec<u8>> {
    match (view.fragment, view.protocol) {
        (Fragment::Later, _) => None,
        (_, proto::TCP | proto::UDP | proto::SCTP) => unreachable(original, view, Why::Network),
        _ => None,
    }
}

/// What is unreachable: RFC 792 type 3, RFC 4443 type 1.
#[derive(Clone, Copy)]
enum Why {
    Network,
    Port,
}

impl Why {
    fn codes(self) -> (u8, u8) {
        match self {
            Self::Network => (0, 0),
            Self::Port => (3, 4),
        }
    }
}

/// RFC 9293 §3.10.7.1.
fn reset(original: &[u8], view: &View) -> Option<Vec<u8>> {
    if view.tcp_flags & tcp::RST != 0 {
        return None;
    }
    let at = view.transport;
    let number = |from: usize| Some(u32::from_be_bytes(*original.get(from..)?.first_chunk::<4>()?));
    let (sequence, acknowledged) = (number(at + 4)?, number(at + 8)?);
    let flag = |bit: u8| u32::from(view.tcp_flags & bit != 0);
    let length = u32::try_from(view.total - view.payload).ok()?;
    let (seq, ack, flags) = if view.tcp_flags & tcp::ACK != 0 {
        (acknowledged, 0, tcp::RST)
    } else {
        (0, sequence.wrapping_add(length + flag(tcp::SYN) + flag(tcp::FIN)), tcp::RST | tcp::ACK)
    };
    let mut out = ip_header(view, proto::TCP, 20)?;
    let start = out.len();
    out.extend(view.dst_port.to_be_bytes());
    out.extend(view.src_port.to_be_bytes());
    out.extend(seq.to_be_bytes());
    out.extend(ack.to_be_bytes());
    out.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let sum = pseudo_header(view.dst, view.src, proto::TCP, 20).bytes(out.get(start..)?).checksum();
    set_word(&mut out, start + 16, sum);
    Some(out)
}

fn unreachable(original: &[u8], view: &View, why: Why) -> Option<Vec<u8>> {
    let (code4, code6) = why.codes();
    let v4 = view.src.is_ipv4();
    // As much of the original as fits without fragmentation anywhere; its headers at least.
    let quoted = original.get(..view.total.min(if v4 { 548 } else { 1200 }))?;
    let protocol = if v4 { proto::ICMP } else { proto::ICMPV6 };
    let mut out = ip_header(view, protocol, 8 + quoted.len())?;
    let start = out.len();
    out.extend(if v4 { [3, code4, 0, 0] } else { [1, code6, 0, 0] });
    out.extend([0; 4]);
    out.extend_from_slice(quoted);
    let covered = out.get(start..)?;
    let sum = if v4 {
        Sum::default().bytes(covered)
    } else {
        pseudo_header(view.dst, view.src, protocol, covered.len()).bytes(covered)
    };
    let sum = sum.checksum();
    set_word(&mut out, start + 2, sum);
    Some(out)
}

/// Writes the checksum of an ICMP message anew, after what it quotes was changed.
pub(crate) fn fix_icmp(packet: &mut [u8], view: &View) {
    let at = view.transport + 2;
    set_word(packet, at, 0);
    let covered = packet.get(view.transport..view.total).unwrap_or_default();
    let sum = match view.protocol {
        proto::ICMPV6 => pseudo_header(view.src, view.dst, proto::ICMPV6, covered.len()).bytes(covered),
        _ => Sum::default().bytes(covered),
    };
    set_word(packet, at, sum.checksum());
}

/// A header from the original's destination to its source.
fn ip_header(view: &View, protocol: u8, payload: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(40 + payload);
    match (view.dst, view.src) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            out.extend([0x45, 0]);
            out.extend(u16::try_from(20 + payload).ok()?.to_be_bytes());
            out.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            packet::fix_v4_header(&mut out);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            out.extend([0x60, 0, 0, 0]);
            out.extend(u16::try_from(payload).ok()?.to_be_bytes());
            out.extend([protocol, 64]);
            out.extend(src.octets());
            out.extend(dst.octets());
        }
        _ => return None,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::packet::parse;
    use super::super::packet::tests::{build, is_correct};
    use super::*;

    #[test]
    fn a_reset_answers_the_connection() {
        for (src, dst) in [("10.0.0.1:40000", "10.96.0.1:80"), ("[fd00::1]:40000", "[fd00::2]:80")] {
            let syn = build(src.parse().unwrap(), dst.parse().unwrap(), proto::TCP, tcp::SYN, &[]);
            let answer = refuse(&syn, &parse(&syn).unwrap()).unwrap();
            assert!(is_correct(&answer));
            let view = parse(&answer).unwrap();
            assert_eq!((view.source(), view.destination()), (dst.parse().unwrap(), src.parse().unwrap()));
            assert_eq!(view.tcp_flags, tcp::RST | tcp::ACK);
            // Acknowledges the SYN: sequence number 1 of the builder, and one.
            assert_eq!(answer[view.transport + 8..view.transport + 12], [0, 0, 0, 2]);
            assert_eq!(refuse(&answer, &view), None, "no reset for a reset");
        }
    }

    #[test]
    fn udp_gets_port_unreachable_with_the_original_quoted() {
        let ask = build("10.0.0.1:40000".parse().unwrap(), "10.96.0.10:53".parse().unwrap(), proto::UDP, 0, b"query");
        let answer = refuse(&ask, &parse(&ask).unwrap()).unwrap();
        assert_eq!(answer[20..22], [3, 3]);
        assert_eq!(no_way(&ask, &parse(&ask).unwrap()).unwrap()[20..22], [3, 0]);
        assert_eq!(Sum::default().bytes(&answer[20..]).folded(), 0xffff);
        assert_eq!(answer[28..], ask[..]);
        let ask6 = build("[fd00::1]:1".parse().unwrap(), "[fd00::2]:2".parse().unwrap(), proto::UDP, 0, b"query");
        let answer = refuse(&ask6, &parse(&ask6).unwrap()).unwrap();
        assert_eq!(answer[40..42], [1, 4]);
        let view = parse(&answer).unwrap();
        assert_eq!(
            pseudo_header(view.src, view.dst, proto::ICMPV6, answer.len() - 40).bytes(&answer[40..]).folded(),
            0xffff
        );
        assert_eq!(refuse(&answer, &view), None, "no error for an error");
    }
}
