//! Images: from files as well as from the registry, told by events, unpacked once.

use hpk_e2e::{BUSYBOX, HOME, Namespace, PATIENCE, eventually, sx};
use serde_json::{Value, json};

/// Runs as alice on the login node.
fn alice(script: &str) -> String {
    sx("login", Some("alice"), &["bash", "-euo", "pipefail", "-c", script]).ok().to_owned()
}

fn run_image(ns: &Namespace, pod: &str, image: &str) {
    let mut object = ns.script_pod(pod, "Never", "busybox true && echo hello from the file");
    object["spec"]["containers"][0]["image"] = json!(image);
    object["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
    ns.apply(&object.to_string());
    ns.wait_phase(pod, "Succeeded");
    assert_eq!(ns.kubectl(&["logs", pod]).ok(), "hello from the file");
}

#[test]
fn from_archives_and_sifs_of_the_users_own() {
    let ns = Namespace::new("files");
    let folder = format!("{HOME}/images-{}", std::process::id());
    alice(&format!(
        "mkdir -p {folder}; cd {folder}
         from=docker://{BUSYBOX}
         skopeo copy -q --insecure-policy --src-tls-verify=false $from oci-archive:oci.tar:one
         skopeo copy -q --insecure-policy --src-tls-verify=false $from docker-archive:docker.tar:busybox:1
         skopeo copy -q --insecure-policy --src-tls-verify=false $from oci:layout:one
         apptainer -q build box.sif oci-archive:oci.tar"
    ));
    for (pod, image) in [
        ("oci-archive", format!("oci-archive:{folder}/oci.tar")),
        ("docker-archive", format!("docker-archive:{folder}/docker.tar")),
        ("layout", format!("oci:{folder}/layout:one")),
        ("sif", format!("{folder}/box.sif")),
    ] {
        run_image(&ns, pod, &image);
    }
    let missing = format!("oci-archive:{folder}/none.tar");
    let mut object = ns.script_pod("missing", "Never", "true");
    object["spec"]["containers"][0]["image"] = json!(missing);
    ns.apply(&object.to_string());
    ns.until_event("missing", "Failed", "none.tar");
    alice(&format!("rm -r {folder}"));
}

#[test]
fn a_pull_is_told_and_done_once_for_many_pods() {
    let ns = Namespace::new("pullonce");
    // A name of its own for the same image, so that nobody has pulled it.
    let image = format!("login:5000/pull-once:{}", std::process::id());
    alice(&format!(
        "skopeo copy -q --insecure-policy --src-tls-verify=false --dest-tls-verify=false docker://{BUSYBOX} docker://{image}"
    ));
    let pods = ["a", "b", "c"];
    let all: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let mut object = ns.script_pod(pod, "Never", "exit 0");
            object["spec"]["containers"][0]["image"] = json!(image);
            object["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
            object
        })
        .collect();
    ns.apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string());
    for pod in pods {
        ns.wait_phase(pod, "Succeeded");
        ns.until_event(pod, "Pulled", &image);
        let id =
            ns.get("pod", pod)["status"]["containerStatuses"][0]["imageID"].as_str().unwrap_or_default().to_owned();
        assert!(id.contains("@sha256:"), "{id}");
    }
    // One pulled it; whoever came later found it there.
    let told = ns.kubectl(&[
        "get",
        "events",
        "-o",
        "jsonpath={range .items[?(@.reason==\"Pulled\")]}{.message}{\"\\n\"}{end}",
    ]);
    let fetched = told.ok().lines().filter(|l| l.starts_with("Successfully pulled")).count();
    assert_eq!(fetched, 1, "{}", told.stdout);
    // The node lists it, as schedulers and people expect.
    eventually("the node lists the image", PATIENCE, || {
        let node = hpk_e2e::kubectl(&["get", "node", hpk_e2e::NODE, "-o", "jsonpath={.status.images[*].names}"]);
        node.stdout.contains(&image).then_some(())
    });
}
