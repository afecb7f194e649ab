//! Links between pods and the kubelet: what a leaked or stale credential opens.

use hpk_api::link::{Hello, LinkCredentials, MEMBER};
use hpk_e2e::{HPK_HOME, Namespace, node_pid, sx};
use hpk_link::client::{ClientConfig, ClientEvent, keep};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What bob has come by.
fn leaked(path: &str) -> LinkCredentials {
    let text = sx("login", Some("alice"), &["cat", path]);
    serde_json::from_str(text.ok()).expect("link.json")
}

/// Says hello to the kubelet from the login node, as whoever has these credentials can; what the kubelet says to that.
fn says(credentials: &LinkCredentials, uid: &str, ips: &[&str]) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("link.json");
    std::fs::write(&file, serde_json::to_vec(credentials).expect("JSON")).expect("written");
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: uid.to_owned(),
        job_id: "1".to_owned(),
        node: "c1".to_owned(),
        datapath: Some(([10, 77, 0, 12], 4000).into()),
        public_key: None,
        pod_ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        outward: None,
        outpost: 0,
    };
    let config = ClientConfig { credentials: file, hello, supervisor: folder.path().join("none") };
    let talk = async move {
        let (events, mut heard) = mpsc::channel(8);
        let (_ask, questions) = mpsc::channel(1);
        let leave = CancellationToken::new();
        let link = keep(config, events, questions, None, leave.clone());
        tokio::select! {
            () = link => Err("left".to_owned()),
            event = heard.recv() => match event {
                Some(ClientEvent::Up) => Ok(()),
                Some(ClientEvent::Down { reason }) => Err(reason),
                other => Err(format!("{other:?}")),
            },
        }
    };
    let login = File::open(format!("/proc/{}/ns/net", node_pid("login"))).expect("the login node");
    // Sockets are made in the network of the thread that makes them.
    let on_login = move || {
        setns(login, CloneFlags::CLONE_NEWNET).expect("the login node's network");
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(talk)
    };
    std::thread::spawn(on_login).join().expect("no panic")
}

#[track_caller]
fn refused(said: Result<(), String>, word: &str) {
    let why = said.expect_err("the kubelet took it");
    assert!(why.contains(word), "{why}");
}

#[test]
fn a_leaked_link_json_claims_nothing_and_cuts_nobody_off() {
    let ns = Namespace::new("leaked-link");
    ns.run_script("pod", "Never", "sleep 600");
    ns.wait_ready("pod");
    let uid = ns.get("pod", "pod")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let path = format!("{HPK_HOME}/pods/{uid}/link.json");
    let pod = leaked(&path);

    // The control plane's member in the pod network is at the first address of each family: who has it has DNS and API.
    for claim in ["10.244.0.1", "fd00:10:244::1", "10.244.200.9", "10.96.0.1"] {
        refused(says(&pod, &uid, &[claim]), "did not give it");
        ns.until_event("pod", "LinkRefused", claim);
    }
    refused(says(&pod, MEMBER, &["10.244.0.1"]), "another pod");
    refused(says(&pod, "0f3c0000-0000-0000-0000-000000000000", &[]), "another pod");
    refused(says(&pod, &uid, &[]), "a link of this pod stands");

    // Nobody has noticed anything.
    let seen = ns.kubectl(&["exec", "pod", "--", "nslookup", "kubernetes.default.svc.cluster.local"]);
    assert!(seen.ok().contains("10.96.0.1"), "{seen:?}");

    // Days, not centuries.
    let ends_within = |seconds: u64| {
        let check = format!("jq -r .cert {path} | openssl x509 -noout -checkend {seconds}");
        sx("login", Some("alice"), &["bash", "-c", &check]).code != Some(0)
    };
    assert!(!ends_within(3600) && ends_within(8 * 24 * 3600), "a certificate lives for some days");

    ns.delete("pod", "pod");
    refused(says(&pod, &uid, &[]), "no running pod of that UID");
    refused(says(&pod, &uid, &["10.244.0.1"]), "no running pod of that UID");
}

/// The member's credentials are a file of alice's; still they are good for the member's place only, and not while it is there.
#[test]
fn the_members_credentials_are_the_members_alone() {
    let member = leaked(&format!("{HPK_HOME}/run/member-link.json"));
    refused(says(&member, MEMBER, &["10.244.0.1"]), "stands");
    refused(says(&member, MEMBER, &["10.244.1.77"]), "did not give it");
    refused(says(&member, "0f3c0000-0000-0000-0000-000000000000", &[]), "another pod");
}
