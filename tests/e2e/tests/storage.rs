//! A pod's local storage and its limits, and what the kubelet puts into volumes.

use hpk_e2e::{HOME, Namespace, PATIENCE, eventually};
use serde_json::json;

#[test]
fn pods_that_exceed_a_storage_limit_are_evicted() {
    let ns = Namespace::new("storage");
    let fill = "head -c 3m /dev/zero > /data/file; head -c 3m /dev/zero > /file; exec sleep 600";
    let mut volume = ns.script_pod("volume", "Always", fill);
    volume["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {"sizeLimit": "2Mi"}}]);
    volume["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let mut container = volume.clone();
    container["metadata"]["name"] = json!("container");
    container["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    container["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "4Mi"}});
    let mut within = container.clone();
    within["metadata"]["name"] = json!("within");
    within["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "40Mi"}});
    for pod in [&volume, &container, &within] {
        ns.apply(&pod.to_string());
    }
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"2Mi\". "),
        ("container", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
    ] {
        let pod = ns.until_pod(name, PATIENCE, |pod| pod["status"]["phase"] == "Failed");
        assert_eq!((&pod["status"]["reason"], &pod["status"]["message"]), (&json!("Evicted"), &json!(message)));
        ns.until_event(name, "Evicted", message.trim());
    }
    assert_eq!(ns.get("pod", "within")["status"]["phase"], "Running");
}

/// A file for its owner alone, and a user who is another: fsGroup lets it be read, after an update of the Secret too.
#[test]
fn fs_group_holds_after_an_update() {
    let ns = Namespace::new("fsgroup");
    ns.kubectl(&["create", "secret", "generic", "words", "--from-literal=word=first"]).ok();
    let script =
        "cat /s/word; until grep -q second /s/word; do sleep 0.2; done; stat -L -c '%g %a' /s/word; exec sleep 600";
    let mut pod = ns.script_pod("reader", "Always", script);
    pod["spec"]["securityContext"] = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 2000,
        "fsGroupChangePolicy": "OnRootMismatch"});
    pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "words", "defaultMode": 0o400}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("reader");
    ns.kubectl(&["patch", "secret", "words", "-p", r#"{"stringData":{"word":"second"}}"#]).ok();
    eventually("the container reads the update", PATIENCE, || {
        let log = ns.kubectl(&["logs", "reader"]);
        log.ok().contains("2000 440").then_some(())
    });
    assert_eq!(ns.kubectl(&["logs", "reader"]).ok(), "first2000 440");
}

/// A token is for the one user of all containers alone, after a change of the volume too. Root of another pod's containers reads
/// its own.
#[test]
fn a_token_is_for_the_pods_user_alone() {
    let ns = Namespace::new("token");
    ns.kubectl(&["create", "configmap", "words", "--from-literal=word=first"]).ok();
    let script =
        "test -s /v/token; stat -L -c '%u %a' /v/token /v/word; until grep -q second /v/word; do sleep 0.2; done
        test -s /v/token; stat -L -c '%u %a' /v/token /v/word; exec sleep 600";
    for (name, context) in [
        ("user", json!({"runAsUser": 1234})),
        ("group", json!({"runAsUser": 1234, "fsGroup": 2000})),
        ("root", json!({})),
    ] {
        let mut pod = ns.script_pod(name, "Always", &format!("set -e; {script}"));
        pod["spec"]["securityContext"] = context;
        pod["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "words"}}]}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        ns.apply(&pod.to_string());
    }
    for name in ["user", "group", "root"] {
        ns.wait_ready(name);
    }
    ns.kubectl(&["patch", "configmap", "words", "-p", r#"{"data":{"word":"second"}}"#]).ok();
    for (name, want) in [("user", "1234 600\n0 644"), ("group", "1234 640\n0 644"), ("root", "0 644\n0 644")] {
        let log = eventually(&format!("{name} sees the change"), PATIENCE, || {
            let log = ns.kubectl(&["logs", name]).ok().to_owned();
            (log.lines().count() == 4).then_some(log)
        });
        assert_eq!(log, format!("{want}\n{want}"), "{name}");
    }
}

/// The signer is this case: it answers the request that the kubelet makes for each of two pods, with a certificate and with
/// a no.
#[test]
fn a_certificate_is_asked_for_and_comes_with_its_key() {
    let ns = Namespace::new("podcert");
    for name in ["signed", "denied"] {
        let mut pod = ns.script_pod(name, "Always", "cat /c/both.pem; exec sleep 600");
        let source = json!({"signerName": format!("example.com/{name}"), "keyType": "ECDSAP256",
            "credentialBundlePath": "both.pem"});
        pod["spec"]["volumes"] = json!([{"name": "c", "projected": {"sources": [{"podCertificate": source}]}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "c", "mountPath": "/c"}]);
        ns.apply(&pod.to_string());
        ns.until_event(name, "FailedMount", "credential bundle is not issued yet");
    }
    let request = r#"set -e; w=$(mktemp -d); cd $w
        of() { kubectl -n $NS get podcertificaterequests -o json | jq -r ".items[] | select(.spec.signerName == \"example.com/$1\") | $2"; }
        answer() { kubectl -n $NS patch podcertificaterequest "$(of $1 .metadata.name)" --subresource=status --type=merge -p "$2"; }
        condition() { echo "[{\"type\":\"$1\",\"status\":\"True\",\"reason\":\"$2\",\"message\":\"$3\",\"lastTransitionTime\":\"$(date -u +%FT%TZ)\"}]"; }
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca 2> /dev/null
        of signed .spec.stubPKCS10Request | base64 -d > request.der
        openssl x509 -req -inform DER -in request.der -CA ca.crt -CAkey ca.key -days 1 -out leaf.crt 2> /dev/null
        moment() { date -u -d "$(openssl x509 -in leaf.crt -noout -$1 | cut -d= -f2) $2" +%FT%TZ; }
        answer signed "{\"status\":{\"conditions\":$(condition Issued Fine yes),\"certificateChain\":$(jq -Rs . leaf.crt),
          \"notBefore\":\"$(moment startdate)\",\"notAfter\":\"$(moment enddate)\",\"beginRefreshAt\":\"$(moment startdate '1 hour')\"}}"
        answer denied "{\"status\":{\"conditions\":$(condition Denied Unknown 'not you')}}"
        rm -r $w"#;
    ns.shell(request).ok();
    ns.wait_ready("signed");
    ns.until_event("denied", "FailedMount", r#"permanently denied: reason="Unknown" message="not you""#);
    let keys = "kubectl -n $NS logs signed > $HOME/both.pem; openssl pkey -in $HOME/both.pem -pubout > $HOME/both.key
        openssl x509 -in $HOME/both.pem -noout -pubkey | cmp - $HOME/both.key && rm $HOME/both.pem $HOME/both.key && echo one key";
    assert_eq!(ns.shell(keys).ok(), "one key");
    assert_eq!(ns.get("pod", "denied")["status"]["phase"], "Pending");
}

/// As upstream has it, the pod waits for its path, and nobody has to make it anew.
#[test]
fn a_host_path_that_is_not_there_yet_is_waited_for() {
    let ns = Namespace::new("late-path");
    let path = format!("{HOME}/{}", ns.name());
    let mut pod = ns.script_pod("pod", "Never", "cat /data/file");
    pod["spec"]["volumes"] = json!([{"name": "data", "hostPath": {"path": path, "type": "Directory"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    ns.apply(&pod.to_string());
    ns.until_event("pod", "FailedMount", &path);
    assert_eq!(ns.get("pod", "pod")["status"]["phase"], "Pending");
    hpk_e2e::sx("login", Some("alice"), &["sh", "-c", &format!("mkdir {path}; echo late > {path}/file")]).ok();
    ns.wait_phase("pod", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "pod"]).ok(), "late");
    hpk_e2e::sx("login", Some("alice"), &["rm", "-r", &path]).ok();
}
