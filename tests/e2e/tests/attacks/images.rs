//! Images: what an image reference may open, and what an image may do while it is unpacked.

use hpk_e2e::{HOME, Namespace, PATIENCE, sx};
use serde_json::{Value, json};

/// Runs as alice on the login node.
fn alice(script: &str) -> String {
    sx("login", Some("alice"), &["bash", "-euo", "pipefail", "-c", script]).ok().to_owned()
}

/// A folder of alice's, removed when dropped.
struct Folder(String);

impl Folder {
    fn new(case: &str) -> Self {
        let path = format!("{HOME}/{case}-{}", std::process::id());
        alice(&format!("mkdir -p {path}"));
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        sx("login", Some("alice"), &["rm", "-rf", &self.0]);
    }
}

fn apply(ns: &Namespace, pod: &str, image: &str) {
    let mut object = ns.script_pod(pod, "Never", "true");
    let spec = &mut object["spec"];
    spec["containers"][0]["image"] = json!(image);
    spec["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    // What restricted asks for; means nothing elsewhere.
    spec["securityContext"] =
        json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
    spec["containers"][0]["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    ns.apply(&object.to_string());
}

/// Why a container waits, once its image could not be had.
fn refusal(ns: &Namespace, pod: &str) -> String {
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = ns.until_pod(pod, PATIENCE, |pod| {
        ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(pod)["reason"].as_str().unwrap_or_default())
    });
    waiting(&pod)["message"].as_str().unwrap_or_default().to_owned()
}

/// Once it was handed to `apptainer build`, which took it for a definition file and ran %setup on the login node.
#[test]
fn a_text_named_sif_runs_nothing_on_the_login_node() {
    let ns = Namespace::new("textsif");
    let folder = Folder::new("textsif");
    let path = &folder.0;
    alice(&format!("printf 'bootstrap: localimage\\nfrom: /\\n%%setup\\n  touch {path}/proof\\n' > {path}/x.sif"));
    apply(&ns, "text", &format!("{path}/x.sif"));
    let why = refusal(&ns, "text");
    assert!(why.contains("invalid image") && why.contains("not a SIF"), "{why}");
    assert_eq!(alice(&format!("ls {path}")), "x.sif");
}

/// Credentials files once came back in error texts, and a FIFO held a thread of the kubelet for ever.
#[test]
fn an_image_name_shows_no_file_and_blocks_nobody() {
    let ns = Namespace::new("anyfile");
    let folder = Folder::new("anyfile");
    let path = &folder.0;
    alice(&format!(
        "cd {path}; echo 'password: hunter2' > secret; mkfifo fifo; mkdir docker; tar -cf private.tar secret
         ln -s ../private.tar docker/layer.tar; echo '{{}}' > docker/config.json
         echo '[{{\"Config\": \"config.json\", \"Layers\": [\"layer.tar\"]}}]' > docker/manifest.json"
    ));
    for (pod, image, words) in [
        ("archive", format!("oci-archive:{path}/secret"), "not a tar"),
        ("docker", format!("docker-archive:{path}/secret"), "not a tar"),
        ("fifo", format!("oci-archive:{path}/fifo"), "not a regular file"),
        ("link-out", format!("docker-archive:{path}/docker"), "leads out of the image's folder"),
        ("proc", "oci-archive:/proc/self/environ".to_owned(), "index.json is missing"),
    ] {
        apply(&ns, pod, &image);
        let why = refusal(&ns, pod);
        assert!(why.contains(words) && !why.contains("hunter2"), "{pod}: {why}");
    }
}

/// Whoever may only create pods in a restricted namespace gets no file of alice's, not even one that is unpacked already.
#[test]
fn a_restricted_namespace_takes_no_image_from_a_file() {
    let ns = Namespace::new("restrictedfile");
    let folder = Folder::new("restrictedfile");
    let image = format!("oci-archive:{}/x.tar", folder.0);
    alice(&format!("skopeo copy -q --insecure-policy --src-tls-verify=false docker://{} {image}:t", hpk_e2e::BUSYBOX));
    apply(&ns, "before", &image);
    ns.wait_phase("before", "Succeeded");
    hpk_e2e::kubectl(&["label", "namespace", ns.name(), "pod-security.kubernetes.io/enforce=restricted"]).ok();
    apply(&ns, "after", &image);
    let why = refusal(&ns, "after");
    assert!(why.contains("not allowed") && why.contains("restricted") && why.contains("registries"), "{why}");
}
