use super::*;
use crate::datapath::packet::parse;
use crate::datapath::packet::tests::{build, is_correct};
use crate::datapath::services::tests::facts;
use hpk_api::link::{PolicyFacts, PolicyPeer, PolicyRule, Protocol};
use proptest::prelude::*;

const POD: &str = "10.244.0.5";

fn pipeline() -> Pipeline {
    Pipeline::new(vec![POD.parse().unwrap()], 1)
}

fn sock(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn packet(src: &str, dst: &str, protocol: u8, flags: u8) -> Vec<u8> {
    build(sock(src), sock(dst), protocol, flags, b"data")
}

/// Decision and the packet's addresses afterwards.
fn out(p: &mut Pipeline, src: &str, dst: &str, flags: u8, now: u64) -> (Outbound, SocketAddr, SocketAddr) {
    let mut bytes = packet(src, dst, proto::TCP, flags);
    let view = parse(&bytes).unwrap();
    let decision = p.outbound(&mut bytes, &view, false, now);
    assert!(is_correct(&bytes));
    let view = parse(&bytes).unwrap();
    (decision, view.source(), view.destination())
}

fn back(p: &mut Pipeline, src: SocketAddr, dst: SocketAddr, flags: u8, now: u64) -> Option<(SocketAddr, SocketAddr)> {
    let mut bytes = build(src, dst, proto::TCP, flags, b"data");
    let view = parse(&bytes).unwrap();
    p.inbound(&mut bytes, &view, now).then(|| {
        assert!(is_correct(&bytes));
        let view = parse(&bytes).unwrap();
        (view.source(), view.destination())
    })
}

#[test]
fn a_service_connection_keeps_its_endpoint_both_ways() {
    let mut p = pipeline();
    p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080", "10.244.1.2:8080"], None));
    let (decision, src, endpoint) = out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 0);
    assert_eq!((decision, src), (Outbound::Send(endpoint.ip()), sock("10.244.0.5:4000")));
    for now in 1..50 {
        assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::ACK, now).2, endpoint);
        assert_eq!(back(&mut p, endpoint, src, tcp::ACK, now), Some((sock("10.96.0.9:80"), src)));
    }
    // An established connection outlives its endpoint's readiness.
    p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.3:8080"], None));
    p.services_changed();
    assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::ACK, 51).2, endpoint);
    // A new connection from the same port does not.
    assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 52).2, sock("10.244.1.3:8080"));
}

#[test]
fn a_first_packet_repeated_goes_elsewhere_once_its_endpoint_is_gone() {
    let mut p = pipeline();
    p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080"], None));
    out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 0);
    p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.3:8080"], None));
    assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 1).2, sock("10.244.1.3:8080"));
    p.services.apply(facts("d/s", "10.96.0.9", 80, &[], None));
    assert_eq!(out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 2).0, Outbound::Refuse);
}

#[test]
fn two_services_on_one_endpoint_do_not_mix() {
    let mut p = pipeline();
    p.services.apply(facts("d/a", "10.96.0.1", 80, &["10.244.1.1:8080"], None));
    p.services.apply(facts("d/b", "10.96.0.2", 80, &["10.244.1.1:8080"], None));
    let (_, direct, _) = out(&mut p, "10.244.0.5:4000", "10.244.1.1:8080", tcp::SYN, 0);
    let (_, a, end) = out(&mut p, "10.244.0.5:4000", "10.96.0.1:80", tcp::SYN, 0);
    let (_, b, _) = out(&mut p, "10.244.0.5:4000", "10.96.0.2:80", tcp::SYN, 0);
    assert!(a != b && a != direct && b != direct);
    assert_eq!(back(&mut p, end, a, tcp::ACK, 1), Some((sock("10.96.0.1:80"), direct)));
    assert_eq!(back(&mut p, end, b, tcp::ACK, 1), Some((sock("10.96.0.2:80"), direct)));
    assert_eq!(back(&mut p, end, direct, tcp::ACK, 1), Some((end, direct)));
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut p = pipeline();
    p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.0.5:8080"], None));
    p.policy = Policy::compile(&PolicyFacts { ingress: Some(vec![]), egress: Some(vec![]) });
    let there = out(&mut p, "10.244.0.5:4000", "10.96.0.9:80", tcp::SYN, 0);
    assert_eq!(there, (Outbound::Loop, sock("10.96.0.9:4000"), sock("10.244.0.5:8080")));
    let answer = out(&mut p, "10.244.0.5:8080", "10.96.0.9:4000", tcp::SYN | tcp::ACK, 0);
    assert_eq!(answer, (Outbound::Loop, sock("10.96.0.9:80"), sock("10.244.0.5:4000")));
}

#[test]
fn policy_judges_who_starts_and_answers_pass() {
    let mut p = pipeline();
    p.policy = Policy::compile(&PolicyFacts { ingress: Some(vec![]), egress: None });
    let (peer, pod) = (sock("10.244.1.1:80"), sock("10.244.0.5:4000"));
    assert_eq!(back(&mut p, peer, pod, tcp::SYN, 0), None);
    out(&mut p, "10.244.0.5:4000", "10.244.1.1:80", tcp::SYN, 0);
    assert!(back(&mut p, peer, pod, tcp::SYN | tcp::ACK, 0).is_some());
    // The other way round.
    let only =
        PolicyRule { peers: Some(vec![PolicyPeer { cidr: "10.244.9.9/32".into(), except: vec![] }]), ports: None };
    let mut p = pipeline();
    p.policy = Policy::compile(&PolicyFacts { ingress: None, egress: Some(vec![only]) });
    assert_eq!(out(&mut p, "10.244.0.5:80", "10.244.1.1:4000", tcp::SYN, 0).0, Outbound::Drop);
    assert_eq!(
        out(&mut p, "10.244.0.5:80", "10.244.9.9:4000", tcp::SYN, 0).0,
        Outbound::Send("10.244.9.9".parse().unwrap())
    );
    assert!(back(&mut p, sock("10.244.1.1:4000"), sock("10.244.0.5:80"), tcp::SYN, 0).is_some());
    assert_ne!(out(&mut p, "10.244.0.5:80", "10.244.1.1:4000", tcp::ACK, 0).0, Outbound::Drop);
}

#[test]
fn egress_is_judged_by_the_endpoint() {
    let mut p = pipeline();
    p.services.apply(facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080"], None));
    let rule = PolicyRule {
        peers: None,
        ports: Some(vec![hpk_api::link::PolicyPort { protocol: Protocol::Tcp, first: 8080, last: 8080 }]),
    };
    p.policy = Policy::compile(&PolicyFacts { ingress: None, egress: Some(vec![rule]) });
    assert_ne!(out(&mut p, "10.244.0.5:1", "10.96.0.9:80", tcp::SYN, 0).0, Outbound::Drop);
}

#[test]
fn strangers_addresses_go_nowhere() {
    let mut p = pipeline();
    assert_eq!(out(&mut p, "10.244.0.6:1", "10.244.1.1:80", tcp::SYN, 0).0, Outbound::Drop);
    assert_eq!(out(&mut p, "10.244.0.5:1", "224.0.0.1:80", tcp::SYN, 0).0, Outbound::Drop);
    assert_eq!(back(&mut p, sock("10.244.1.1:80"), sock("10.244.0.6:1"), tcp::SYN, 0), None);
}

#[test]
fn pieces_follow_the_first() {
    let mut p = pipeline();
    let mut f = facts("d/s", "10.96.0.9", 80, &["10.244.1.1:8080"], None);
    f.ports[0].protocol = Protocol::Udp;
    p.services.apply(f);
    let mut first = packet("10.244.0.5:4000", "10.96.0.9:80", proto::UDP, 0);
    packet::set_word(&mut first, 6, 0x2000);
    packet::fix_v4_header(&mut first);
    let mut later = first.clone();
    packet::set_word(&mut later, 6, 0x0003);
    packet::fix_v4_header(&mut later);
    let mut early = later.clone();
    let view = parse(&early).unwrap();
    assert_eq!(p.outbound(&mut early, &view, false, 0), Outbound::Drop, "overtook the first");
    for bytes in [&mut first, &mut later] {
        let view = parse(bytes).unwrap();
        assert_eq!(p.outbound(bytes, &view, false, 0), Outbound::Send("10.244.1.1".parse().unwrap()));
        assert_eq!(parse(bytes).unwrap().dst, "10.244.1.1".parse::<IpAddr>().unwrap());
    }
}

#[test]
fn an_icmp_error_is_told_in_the_pods_words() {
    let mut p = pipeline();
    let mut f = facts("d/s", "10.96.0.9", 53, &["10.244.1.1:5353"], None);
    f.ports[0].protocol = Protocol::Udp;
    p.services.apply(f);
    let mut ask = packet("10.244.0.5:4000", "10.96.0.9:53", proto::UDP, 0);
    let original = ask.clone();
    let view = parse(&ask).unwrap();
    p.outbound(&mut ask, &view, false, 0);
    let mut error = crate::datapath::refuse::refuse(&ask, &parse(&ask).unwrap()).unwrap();
    let view = parse(&error).unwrap();
    assert!(p.inbound(&mut error, &view, 0));
    assert_eq!(&error[28..], &original[..]);
    assert_eq!(crate::datapath::checksum::Sum::default().bytes(&error[20..]).folded(), 0xffff);
}

#[test]
fn what_is_over_is_forgotten() {
    let mut p = pipeline();
    for port in 1..1000_u16 {
        out(&mut p, &format!("10.244.0.5:{port}"), "10.244.1.1:80", tcp::SYN, 0);
    }
    assert_eq!(p.len(), 999);
    out(&mut p, "10.244.0.5:1", "10.244.1.2:80", tcp::SYN, lifetime::OPENING + 1);
    assert_eq!(p.len(), 1);
}

proptest! {
    /// Whatever the pod sends, an answer to what left is given back as the pod knows it, and no two connections of
    /// the pod look alike on the wire.
    #[test]
    fn answers_find_their_way(sends in proptest::collection::vec((1..6_u16, 0..4_u8, any::<bool>()), 1..60)) {
        let mut p = pipeline();
        p.services.apply(facts("d/a", "10.96.0.1", 80, &["10.244.1.1:8080", "10.244.1.2:8080"], None));
        p.services.apply(facts("d/b", "10.96.0.2", 80, &["10.244.1.1:8080"], Some(60)));
        let targets = ["10.96.0.1:80", "10.96.0.2:80", "10.244.1.1:8080", "10.244.1.2:8080"];
        let mut wires: HashMap<(SocketAddr, SocketAddr), (SocketAddr, SocketAddr)> = HashMap::new();
        for (port, target, syn) in sends {
            let src = format!("10.244.0.5:{port}");
            let dst = targets[usize::from(target)];
            let (decision, wire_src, wire_dst) = out(&mut p, &src, dst, if syn { tcp::SYN } else { tcp::ACK }, 1);
            prop_assert_eq!(decision, Outbound::Send(wire_dst.ip()));
            let logical = (sock(&src), sock(dst));
            wires.retain(|_, l| *l != logical);
            prop_assert_eq!(wires.insert((wire_src, wire_dst), logical), None);
            for ((s, d), (client, service)) in &wires {
                prop_assert_eq!(back(&mut p, *d, *s, tcp::ACK, 1), Some((*service, *client)));
            }
        }
    }
}
