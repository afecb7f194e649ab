//! Flags of sbatch in annotations: nothing of the job that HPK needs can be changed by them.

use hpk_e2e::{HOME, NODE, Namespace, PATIENCE, Run, eventually, job_of, sx};
use serde_json::{Value, json};

const FLAGS: &str = "slurm-job.hpk.io/flags";

fn with_flags(ns: &Namespace, pod: &str, key: &str, flags: &str) -> Value {
    let mut pod = ns.script_pod(pod, "Never", "exit 0");
    pod["metadata"]["annotations"] = json!({key: flags});
    pod
}

/// Each set of flags in a pod of its own: none is submitted, and each says which flag it was.
fn refused(ns: &Namespace, key: &str, attacks: &[(&str, &str)]) {
    let name = |i: usize| format!("attack-{i}");
    for (i, (flags, _)) in attacks.iter().enumerate() {
        ns.apply(&with_flags(ns, &name(i), key, flags).to_string());
    }
    for (i, (_, flag)) in attacks.iter().enumerate() {
        let text = format!("annotation {key}: {flag}");
        let held = ns.until_pod(&name(i), PATIENCE, |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["message"].as_str().is_some_and(|m| m.starts_with(&text))
        });
        assert_eq!(held["status"]["phase"], "Pending");
        ns.until_event(&name(i), "FailedSubmit", &text);
        assert_eq!(job_of(ns.name(), &name(i)), None);
    }
}

fn alice(script: &str) -> Run {
    sx("login", Some("alice"), &["bash", "-c", script])
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_file_of_the_users_is_not_made_the_jobs_output() {
    let ns = Namespace::new("flagoutput");
    let file = format!("{HOME}/{}", ns.name());
    alice(&format!("echo precious > {file}")).ok();
    let attacks = [
        (format!("--output={file} --open-mode=truncate"), "--output"),
        (format!("--ou={file}"), "--ou"),
        ("--op=truncate".to_owned(), "--op"),
        (format!("--er={file}"), "--er"),
        (format!("-o{file}"), "-o"),
        (format!("-so{file}"), "-so"),
        (format!("-w{file}"), "--nodelist"),
        (format!("--nodefile={file}"), "--nodefile"),
    ];
    refused(&ns, FLAGS, &attacks.each_ref().map(|(flags, flag)| (flags.as_str(), *flag)));
    let kept = alice(&format!("cat {file}; rm {file}"));
    assert_eq!(kept.ok(), "precious");
}

/// A folder's name with line breaks once became lines of a start file, by what Slurm wrote of the failed chdir.
#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_shell_start_file_gets_no_line() {
    let ns = Namespace::new("flagchdir");
    let line = format!("touch {HOME}/{}", ns.name());
    refused(
        &ns,
        FLAGS,
        &[
            (&format!("'--chdir=/no\n{line}\n' --out={HOME}/.profile"), "a line break"),
            (&format!("'--ch=/no\n{line}\n'"), "a line break"),
            ("--ch=/tmp", "--ch"),
            ("-D/tmp", "-D"),
        ],
    );
    let profile = alice(&format!("cat {HOME}/.profile {HOME}/.bashrc 2>/dev/null; true"));
    assert!(!profile.ok().contains(ns.name()), "{}", profile.stdout);
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn the_job_stays_one_of_its_own_name() {
    let ns = Namespace::new("flagjob");
    refused(
        &ns,
        "slurm.hpk.io/flags",
        &[
            ("-sJname", "-sJname"),
            ("--jo=name", "--jo"),
            ("--comm=uid", "--comm"),
            ("--ar=1-3", "--ar"),
            ("-OHk", "-OHk"),
            ("--si=KILL", "--si"),
            ("--get", "--get"),
            ("--wrap=id", "--wrap"),
            (": -N1", "\":\""),
        ],
    );
}

/// In a namespace of level restricted, somebody who may only create pods takes 32 CPUs by a flag that no quota counts.
#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_pod_maker_in_a_restricted_namespace_gives_no_flags() {
    let ns = Namespace::new("flagmaker");
    ns.kubectl(&["create", "serviceaccount", "maker"]).ok();
    ns.kubectl(&["create", "role", "maker", "--verb=create", "--resource=pods"]).ok();
    let binding = format!("--serviceaccount={}:maker", ns.name());
    ns.kubectl(&["create", "rolebinding", "maker", "--role=maker", &binding]).ok();
    let label = |label: &str| ns.kubectl(&["label", "namespace", ns.name(), label]).ok().to_owned();
    label("pod-security.kubernetes.io/enforce=restricted");

    let mut pod = with_flags(&ns, "greedy", FLAGS, "--cpus-per-task=32");
    pod["spec"]["securityContext"] = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    pod["spec"]["containers"][0]["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let as_maker = |pod: &Value| {
        ns.shell(&format!(
            "kubectl config view --raw --minify -o jsonpath='{{.clusters[0].cluster.certificate-authority-data}}' |
             base64 -d > /tmp/$NS.ca &&
             kubectl --kubeconfig=/dev/null --server=$(kubectl config view --minify -o jsonpath='{{.clusters[0].cluster.server}}') \
               --certificate-authority=/tmp/$NS.ca --token=$(kubectl -n $NS create token maker) \
               -n $NS create --dry-run=server --validate=false -f - <<'EOF'\n{pod}\nEOF"
        ))
    };
    let answer = eventually("the policy holds", PATIENCE, || {
        let run = as_maker(&pod);
        (run.code != Some(0)).then(|| run.err())
    });
    let words =
        format!("annotation {FLAGS}: no flags of Slurm in a namespace whose pod-security.kubernetes.io/enforce");
    assert!(answer.contains(&words), "{answer}");

    let mut plain = pod.clone();
    plain["metadata"]["annotations"] = json!({});
    as_maker(&plain).ok();
    // The API server copies a binding's annotations into the pod.
    plain["metadata"]["name"] = json!("bound");
    plain["spec"]["schedulerName"] = json!("nobody");
    ns.apply(&plain.to_string());
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": "bound", "annotations": {FLAGS: "--cpus-per-task=32"}},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    });
    let path = format!("/api/v1/namespaces/{}/pods/bound/binding", ns.name());
    let bound = ns.kubectl_with_input(&["create", "--raw", &path, "-f", "-"], &binding.to_string()).err();
    assert!(bound.contains(&words), "{bound}");

    // Whoever may label the namespace can let them through.
    label("slurm.hpk.io/pod-flags=allow");
    eventually("the exception holds", PATIENCE, || (as_maker(&pod).code == Some(0)).then_some(()));
    alice(&format!("rm -f /tmp/{}.ca", ns.name())).ok();
}
