use super::*;
use hpk_api::link::{Hello, MEMBER, NetQuestion};
use proptest::prelude::*;
use serde_json::json;

fn hello(uid: &str, ip: &str, port: u16, key: &str) -> Hello {
    Hello {
        version: 1,
        pod_uid: uid.into(),
        job_id: String::new(),
        node: String::new(),
        datapath: Some(([10, 77, 0, 11], port).into()),
        public_key: Some(key.into()),
        pod_ips: ip.split(',').map(|ip| ip.parse().unwrap()).collect(),
        outward: None,
        outpost: 0,
    }
}

fn service(name: &str, ip: &str) -> Service {
    serde_json::from_value(
        json!({"metadata": {"namespace": "d", "name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 443}]}}),
    )
    .unwrap()
}

fn slice(name: &str, ip: &str) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"namespace": "d", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"port": 6443}], "endpoints": [{"addresses": [ip]}]
    }))
    .unwrap()
}

fn endpoints(pushes: &[Push]) -> Vec<String> {
    pushes
        .iter()
        .flat_map(|p| &p.facts)
        .filter_map(|f| match f {
            NetUpdate::Service(s) => {
                Some(s.ports.iter().flat_map(|p| p.endpoints.iter().map(ToString::to_string)).collect::<Vec<_>>())
            }
            _ => None,
        })
        .flatten()
        .collect()
}

#[test]
fn an_endpoint_outside_goes_through_the_member_which_hears_first() {
    let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
    w.subscribed(MEMBER);
    assert!(w.slice(slice("api", "10.77.0.1")).is_empty(), "no service yet");
    let pushes = w.service(service("api", "10.96.0.1"));
    let NetUpdate::Relays(relays) = &pushes[0].facts[0] else { panic!("{pushes:?}") };
    assert_eq!(relays[0].target, "10.77.0.1:6443".parse().unwrap());
    assert_eq!(endpoints(&pushes), [format!("10.244.0.1:{}", relays[0].port)]);
    assert!(w.slice(slice("api", "10.77.0.1")).is_empty(), "nothing new, nothing said");
    let pushes = w.slice(slice("api", "10.244.3.3"));
    assert_eq!(endpoints(&pushes), ["10.244.3.3:6443"]);
    let gone = w.service_gone("d/api");
    assert_eq!(gone[0].facts, [NetUpdate::ServiceGone { key: "d/api".into() }]);
}

#[test]
fn the_member_listens_for_node_ports() {
    let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
    let with = |port: u16| -> Service {
        let mut s = service("web", "10.96.0.1");
        let spec = s.spec.as_mut().unwrap();
        spec.type_ = Some("NodePort".into());
        spec.ports.as_mut().unwrap()[0].node_port = Some(port.into());
        s
    };
    let heard = |pushes: &[Push]| {
        pushes.iter().flat_map(|p| &p.facts).find_map(|f| match f {
            NetUpdate::Listeners(all) => {
                Some(all.iter().map(|l| (l.at.to_string(), l.endpoints.len())).collect::<Vec<_>>())
            }
            _ => None,
        })
    };
    w.service(with(30_001));
    w.slice(slice("web", "10.244.3.3"));
    let at = |n: u16| (format!("10.77.0.1:{n}"), 1);
    assert_eq!(heard(&w.subscribed(MEMBER)).unwrap(), [at(30_001)]);
    assert_eq!(heard(&w.service(with(30_001))), None, "nothing new");
    assert_eq!(heard(&w.service(with(30_002))).unwrap(), [at(30_002)]);
    assert!(heard(&w.service_gone("d/web")).unwrap().is_empty());
}

#[test]
fn a_subscriber_is_told_everything_and_that_it_was_everything() {
    let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
    w.service(service("a", "10.96.0.1"));
    w.service(service("b", "10.96.0.2"));
    w.pod("u", PodInfo { namespace: "d".into(), ..PodInfo::default() });
    let facts = &w.subscribed("u")[0].facts;
    assert!(
        matches!(
            facts[..],
            [NetUpdate::Policy(_), NetUpdate::Service(_), NetUpdate::Service(_), NetUpdate::ServicesSynced]
        ),
        "{facts:?}"
    );
}

#[test]
fn who_asked_hears_of_changes() {
    let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
    w.up(&hello("a", "10.244.1.1", 1, "ka"));
    let ip = "10.244.1.2".parse().unwrap();
    let fact = |push: Option<Push>| match push.unwrap().facts[0].clone() {
        NetUpdate::Peer { endpoint, public_key, .. } => (endpoint.map(|e| e.port()), public_key),
        other => panic!("{other:?}"),
    };
    assert!(w.asked("a", &NetQuestion::Peer { ip }).is_none(), "its link may be on its way back");
    w.settle();
    assert_eq!(fact(w.asked("a", &NetQuestion::Peer { ip })), (None, None));
    let told = w.up(&hello("b", "10.244.1.2", 2, "kb"));
    assert_eq!(told[0].to, To::One("a".into()));
    assert_eq!(fact(told.into_iter().next()), (Some(2), Some("kb".into())));
    // By key, the other way round.
    assert_eq!(fact(w.asked("b", &NetQuestion::PeerByKey { public_key: "ka".into() })), (Some(1), Some("ka".into())));
    assert!(w.asked("b", &NetQuestion::PeerByKey { public_key: "?".into() }).is_none());
    // A link that goes down is not a pod that is gone.
    w.down("b");
    assert_eq!(fact(w.asked("a", &NetQuestion::Peer { ip })).0, Some(2));
    assert_eq!(fact(w.pod_gone("b").into_iter().next()), (None, None));
}

#[test]
fn an_answer_holds_both_addresses_for_who_has_both() {
    let mut w = World::new("10.244.0.0/16,fd00::/64", vec!["10.77.0.1".parse().unwrap()]);
    w.up(&hello("a", "10.244.1.1,fd00::101", 1, "ka"));
    w.up(&hello("b", "10.244.1.2,fd00::102", 2, "kb"));
    w.up(&hello("old", "10.244.1.3", 3, "ko"));
    let ips = |push: Option<Push>| -> Vec<String> {
        let fact = |f: &NetUpdate| match f {
            NetUpdate::Peer { ip, endpoint: Some(_), .. } => ip.to_string(),
            other => panic!("{other:?}"),
        };
        push.unwrap().facts.iter().map(fact).collect()
    };
    let both = ["10.244.1.2", "fd00::102"];
    assert_eq!(ips(w.asked("a", &NetQuestion::Peer { ip: both[1].parse().unwrap() })), both);
    assert_eq!(ips(w.asked("a", &NetQuestion::PeerByKey { public_key: "kb".into() })), both);
    assert_eq!(ips(w.asked("old", &NetQuestion::PeerByKey { public_key: "kb".into() })), both[..1]);
    assert_eq!(ips(w.asked("a", &NetQuestion::PeerByKey { public_key: "ko".into() })), ["10.244.1.3"]);
    // Both are told to be gone.
    assert_eq!(w.pod_gone("b").len(), 2);
}

#[test]
fn an_ipv6_endpoint_outside_goes_through_the_members_ipv6_address() {
    let mut w = World::new("10.244.0.0/16,fd00::/64", vec!["10.77.0.1".parse().unwrap()]);
    w.service(service("out", "fd01::5"));
    let mut s = slice("out", "2001:db8::7");
    s.address_type = "IPv6".into();
    let seen = endpoints(&w.slice(s));
    assert!(seen.len() == 1 && seen[0].starts_with("[fd00::1]:"), "{seen:?}");
    let mut s = slice("out", "fd00::107");
    s.address_type = "IPv6".into();
    assert_eq!(endpoints(&w.slice(s)), ["[fd00::107]:6443"]);
}

#[test]
fn policies_are_pushed_when_they_change() {
    let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
    w.pod("u", PodInfo { namespace: "d".into(), ..PodInfo::default() });
    w.subscribed("u");
    assert!(w.policies().is_empty());
    w.policy(
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": "deny"}, "spec": {"podSelector": {}}}))
            .unwrap(),
    );
    assert_eq!(w.policies().len(), 1);
    assert!(w.policies().is_empty());
    w.policy_gone("d/deny");
    assert_eq!(w.policies().len(), 1);
}

/// A change of what pods and policies are.
#[derive(Clone, Debug)]
enum Change {
    Pod { uid: u8, namespace: u8, label: u8, ip: u8, port: Option<u16> },
    PodGone(u8),
    Up { uid: u8, ip: u8 },
    Namespace { name: u8, label: u8 },
    NamespaceGone(u8),
    Policy { namespace: u8, name: u8, spec: serde_json::Value },
    PolicyGone { namespace: u8, name: u8 },
    Dns(u8),
    Subscribed(u8),
    Down(u8),
    Compile,
}

fn apply(w: &mut World, change: Change) {
    let address = |ip: u8| format!("10.244.0.{ip}");
    let (ns, uid) = (|n: u8| format!("n{n}"), |n: u8| format!("u{n}"));
    match change {
        Change::Pod { uid: u, namespace, label, ip, port } => {
            let info = PodInfo {
                namespace: ns(namespace),
                labels: Labels::from([("l".to_owned(), label.to_string())]),
                ips: vec![address(ip).parse().unwrap()],
                ports: port.map(|port| ("web".to_owned(), hpk_api::link::Protocol::Tcp, port)).into_iter().collect(),
                ..PodInfo::default()
            };
            w.pod(&uid(u), info);
        }
        Change::PodGone(u) => drop(w.pod_gone(&uid(u))),
        Change::Up { uid: u, ip } => drop(w.up(&hello(&uid(u), &address(ip), 1, "k"))),
        Change::Namespace { name, label } => {
            w.namespace(&ns(name), Labels::from([("l".to_owned(), label.to_string())]));
        }
        Change::NamespaceGone(name) => w.namespace_gone(&ns(name)),
        Change::Policy { namespace, name, spec } => {
            let policy = json!({"metadata": {"namespace": ns(namespace), "name": name.to_string()}, "spec": spec});
            w.policy(serde_json::from_value(policy).unwrap());
        }
        Change::PolicyGone { namespace, name } => w.policy_gone(&format!("{}/{name}", ns(namespace))),
        Change::Dns(ip) => {
            let meta = json!({"namespace": "kube-system", "name": "kube-dns"});
            let ports = json!([{"port": 53, "protocol": "UDP"}]);
            let spec = json!({"clusterIP": "10.96.0.10", "ports": ports});
            w.service(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap());
            let mut dns = slice("kube-dns", &format!("10.77.0.{ip}"));
            dns.metadata.namespace = Some("kube-system".to_owned());
            dns.ports.as_mut().unwrap()[0].protocol = Some("UDP".to_owned());
            w.slice(dns);
        }
        Change::Subscribed(u) => drop(w.subscribed(&uid(u))),
        Change::Down(u) => w.down(&uid(u)),
        Change::Compile => drop(w.policies()),
    }
}

fn change() -> impl Strategy<Value = Change> {
    let labels = |label: u8| json!({"matchLabels": {"l": label.to_string()}});
    let peer = (0_u8..4, 0_u8..2, 0_u8..2).prop_map(move |(kind, a, b)| match kind {
        0 => json!({"podSelector": labels(a)}),
        1 => json!({"namespaceSelector": labels(a)}),
        2 => json!({"namespaceSelector": labels(a), "podSelector": labels(b)}),
        _ => json!({"ipBlock": {"cidr": "10.0.0.0/8"}}),
    });
    let port = prop_oneof![Just(json!({"port": "web"})), Just(json!({"port": 80}))];
    let rule = move |field: &'static str| {
        let (peers, ports) = (proptest::collection::vec(peer.clone(), 0..2), proptest::option::of(port.clone()));
        (peers, ports).prop_map(move |(peers, port)| {
            let mut rule = json!({field: peers});
            if let Some(port) = port {
                rule["ports"] = json!([port]);
            }
            rule
        })
    };
    let spec = (proptest::option::of(0_u8..2), rule("from"), rule("to")).prop_map(move |(own, from, to)| {
        let selector = own.map_or(json!({}), labels);
        json!({"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "ingress": [from], "egress": [to]})
    });
    prop_oneof![
        6 => (0_u8..4, 0_u8..2, 0_u8..2, 1_u8..4, proptest::option::of(80_u16..82))
            .prop_map(|(uid, namespace, label, ip, port)| Change::Pod { uid, namespace, label, ip, port }),
        2 => (0_u8..4).prop_map(Change::PodGone),
        2 => (0_u8..4, 1_u8..4).prop_map(|(uid, ip)| Change::Up { uid, ip }),
        2 => (0_u8..2, 0_u8..2).prop_map(|(name, label)| Change::Namespace { name, label }),
        1 => (0_u8..2).prop_map(Change::NamespaceGone),
        4 => (0_u8..2, 0_u8..2, spec)
            .prop_map(|(namespace, name, spec)| Change::Policy { namespace, name, spec }),
        1 => (0_u8..2, 0_u8..2).prop_map(|(namespace, name)| Change::PolicyGone { namespace, name }),
        1 => (1_u8..3).prop_map(Change::Dns),
        4 => (0_u8..4).prop_map(Change::Subscribed),
        1 => (0_u8..4).prop_map(Change::Down),
        3 => Just(Change::Compile),
    ]
}

proptest! {
    /// However the cluster changes: what was compiled again is all that had to be.
    #[test]
    fn what_is_told_is_what_the_policies_mean(changes in proptest::collection::vec(change(), 1..60)) {
        let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
        for change in changes {
            apply(&mut w, change);
        }
        w.policies();
        prop_assert!(!w.policies_due());
        for uid in &w.subscribed {
            let Some(pod) = w.pods.get(uid) else { continue };
            let told = w.policy_told.get(uid).cloned().unwrap_or_default();
            prop_assert_eq!(told, w.compile(pod), "{}", uid);
        }
    }
}

#[test]
fn an_outpost_is_its_pod() {
    let mut w = World::new("10.244.0.0/16", vec!["10.77.0.1".parse().unwrap()]);
    let rule = json!({"from": [{"podSelector": {"matchLabels": {"a": "b"}}}]});
    let policy = json!({
        "metadata": {"namespace": "d", "name": "p"}, "spec": {"podSelector": {}, "ingress": [rule]}
    });
    w.policy(serde_json::from_value(policy).unwrap());
    let labels = Labels::from([("a".to_owned(), "b".to_owned())]);
    let ips = vec!["10.77.0.12".parse().unwrap()];
    w.pod("u", PodInfo { namespace: "d".into(), labels, ips, ..PodInfo::default() });
    w.up(&hello("u", "10.244.1.2", 1, "k"));
    w.subscribed("u");
    w.up(&Hello { outpost: 1, ..hello("u", "10.244.1.3", 2, "k1") });
    assert!(w.policies_due(), "others may let it in");
    // It is told what its pod is told, and with all of the pod's addresses.
    let said = format!("{:?}", w.subscribed("u/1"));
    for ip in ["10.244.1.2/32", "10.244.1.3/32", "10.77.0.12/32"] {
        assert!(said.contains(ip), "{ip} in {said}");
    }
    assert_eq!(w.policies().len(), 1, "the pod itself hears of the new address");
    assert!(w.asked("v", &NetQuestion::Peer { ip: "10.244.1.3".parse().unwrap() }).is_some());
    // The link of one is not the other's.
    w.down("u/1");
    assert!(w.subscribed.contains("u"));
    assert_eq!(w.pod_gone("u").len(), 1, "who asked is told");
    assert!(w.peers.is_empty() && w.by_ip.is_empty() && w.outposts.is_empty());
}
