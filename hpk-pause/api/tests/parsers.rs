//! The parsers of the contract meet whatever comes: they may refuse, never panic, and what they accept they can say
//! again without loss. Input is random bytes, and valid documents that were damaged in a few places, which reach
//! deeper than noise does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_api::control::{ExecOptions, Greeting, LogOptions, Reply, Request, StreamEnd, TerminalSize, Update};
use hpk_api::link::{NetQuestion, NetUpdate, StreamOpen};
use hpk_api::plan::SandboxPlan;
use hpk_api::state::PodState;
use proptest::prelude::*;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

const PLAN: &str = r#"{"version":1,"pod":{"namespace":"default","name":"web","uid":"6f0c"},"hostname":"web",
"restart_policy":"Always","termination_grace_period_seconds":30,"active_deadline_seconds":600,"share_process_namespace":true,
"network":{"mode":"overlay","pod_ips":["10.244.0.7"],"pod_cidr":"10.244.0.0/16","service_cidr":"10.96.0.0/16","mtu":1400,
"list":{"file":"/h/net.d/1.conflist","text":"{}"},"bandwidth":{"ingress":10000000}},
"init_containers":[],
"containers":[{"name":"c","image":"busybox","image_ref":{"folder":"sha256-00","id":"docker.io/busybox@sha256:00"},
"argv":["sh","-c","sleep 1"],"env":[["A","1"],["IP","\u0000podIP\u0000"]],"working_dir":"/w",
"mounts":[{"volume":"v","path":"/data","read_only":true,"sub_path":"a/b","propagation":"HostToContainer"}],
"security":{"uid":1000,"gid":1000,"cap_add":["NET_ADMIN"],"seccomp":"RuntimeDefault","allow_privilege_escalation":false},
"restart_rules":[{"action":"Restart","operator":"In","values":[42]}],
"probes":{"liveness":{"handler":{"http_get":{"scheme":"HTTP","port":80,"path":"/","headers":[["X","y"]]}},"timeout_seconds":1,
"period_seconds":10,"success_threshold":1,"failure_threshold":3}},
"lifecycle":{"pre_stop":{"sleep":{"seconds":2}}},"stop_signal":15,"resources":{"requests":{"cpu":100},"limits":{}}}],
"volumes":{"v":{"kind":"empty_dir","memory":true,"size_limit":1024},"h":{"kind":"host","index":0}},
"host_binds":[{"source":"/data","kind":"Directory"}],"etc_hosts":"127.0.0.1\tlocalhost\n","sysctls":{"net.ipv4.ip_forward":"1"},
"settings":{"log_max_bytes":4096}}"#;

const STATE: &str = r#"{"version":1,"pod":{"namespace":"n","name":"p","uid":"u"},"sequence":7,"job_id":"12","node":"c1",
"started_at":"2026-11-23T20:00:00Z","pod_ips":["10.244.0.7"],"sandbox_ready":true,
"network":{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1440,"sandbox":"/proc/7/ns/net"}],
"ips":[{"address":"10.244.0.7/32","interface":0}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.96.0.10"]}},"containers":[{"name":"c","state":{"terminated":
{"exit_code":137,"signal":9,"reason":"OOMKilled","finished_at":"2026-11-23T20:00:01.5Z"}},"restart_count":3,"ready":false}],
"stopping":"deadline_exceeded","finished":true,"events":[{"sequence":1,"at":"2026-11-23T20:00:00Z","warning":true,"reason":"Unhealthy",
"message":"m","container":"c","probe":"liveness"}]}"#;

/// What is accepted, written and read again, is the same.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&value).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&text).unwrap(), value);
    }
}

fn check_all(bytes: &[u8]) {
    check::<SandboxPlan>(bytes);
    check::<PodState>(bytes);
    check::<Greeting>(bytes);
    check::<Request>(bytes);
    check::<Reply>(bytes);
    check::<StreamEnd>(bytes);
    check::<TerminalSize>(bytes);
    check::<StreamOpen>(bytes);
    check::<NetQuestion>(bytes);
    check::<NetUpdate>(bytes);
}

fn documents() -> Vec<String> {
    let exec = ExecOptions {
        container: "c".to_owned(),
        command: vec!["sh".to_owned()],
        stdin: true,
        tty: true,
        ..ExecOptions::default()
    };
    let requests = [
        Request::Status { watch: true },
        Request::Logs(LogOptions {
            container: "c".to_owned(),
            since: Some("2026-11-23T20:00:00Z".parse().unwrap()),
            ..LogOptions::default()
        }),
        Request::Exec(exec),
        Request::PortForward { port: 80 },
        Request::Dial { address: "10.0.0.1:443".parse().unwrap() },
        Request::Stats,
        Request::Stop { grace_period_seconds: 3 },
        Request::Update(Update {
            containers: serde_json::from_str::<SandboxPlan>(PLAN).unwrap().containers,
            ..Update::default()
        }),
    ];
    [PLAN.to_owned(), STATE.to_owned()]
        .into_iter()
        .chain(requests.iter().map(|r| serde_json::to_string(r).unwrap()))
        .collect()
}

/// One damage: at a place, so many bytes are replaced by others.
type Damage = (prop::sample::Index, usize, Vec<u8>);

fn damage() -> impl Strategy<Value = Damage> {
    let token = prop::sample::select(vec![
        "null",
        "-1",
        "1e400",
        "18446744073709551616",
        "\"\"",
        "{}",
        "[]",
        ",",
        "\"",
        "}",
        "\\u0000",
        "true",
    ]);
    let bytes = prop_oneof![token.prop_map(|t| t.as_bytes().to_vec()), prop::collection::vec(any::<u8>(), 0..4)];
    (any::<prop::sample::Index>(), 0usize..12, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_all(&bytes);
    }

    #[test]
    fn damaged_documents(document in prop::sample::select(documents()), damages in prop::collection::vec(damage(), 1..4)) {
        let mut bytes = document.into_bytes();
        for (place, length, with) in damages {
            let at = place.index(bytes.len() + 1);
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, with);
        }
        check_all(&bytes);
    }
}

#[test]
fn the_documents_themselves_are_valid() {
    serde_json::from_str::<SandboxPlan>(PLAN).unwrap();
    serde_json::from_str::<PodState>(STATE).unwrap();
    for document in documents() {
        check_all(document.as_bytes());
    }
}

#[test]
fn unknown_fields_of_a_newer_writer_are_tolerated() {
    let newer = PLAN.replacen("{\"version\":1", "{\"from_the_future\":{\"a\":[1]},\"version\":1", 1);
    assert_eq!(
        serde_json::from_str::<SandboxPlan>(&newer).unwrap(),
        serde_json::from_str::<SandboxPlan>(PLAN).unwrap()
    );
    let newer = STATE.replacen("{\"version\":1", "{\"from_the_future\":null,\"version\":1", 1);
    assert_eq!(serde_json::from_str::<PodState>(&newer).unwrap(), serde_json::from_str::<PodState>(STATE).unwrap());
}
