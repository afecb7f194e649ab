//! Containers that a nested Apptainer makes, where the kernel gives a user namespace no overlay or a pod says so.

use hpk_e2e::{BUSYBOX, HOME, Namespace, PATIENCE, eventually, sx};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pod that says so.
fn nested(ns: &Namespace, pod: &str, restart: &str, script: &str) -> Value {
    let mut pod = ns.script_pod(pod, restart, script);
    pod["metadata"]["annotations"] = json!({"runtime.hpk.io/launcher": "apptainer"});
    pod
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// (process, its parent) on the pod's node by the end of the command line.
fn process(ns: &Namespace, pod: &str, command: &str) -> Option<(String, String)> {
    let node = hpk_e2e::job_of(ns.name(), pod)?.node;
    let list = sx(&node, None, &["ps", "-e", "-ww", "-o", "pid=,ppid=,args="]);
    let line = list.ok().lines().find(|line| line.ends_with(command))?.to_owned();
    let mut words = line.split_whitespace().map(str::to_owned);
    Some((words.next()?, words.next()?))
}

#[test]
fn a_pod_lives_by_a_nested_apptainer_as_by_the_native_launcher() {
    let ns = Namespace::new("nested");
    ns.kubectl(&["create", "configmap", "words", "--from-literal=word=configured"]).ok();
    let script = "echo run $A $(id -u):$(id -g) $(cat /words/word) $(cat /w/init); touch /no 2>&1; \
                  [ -e /w/again ] && exec sleep 86123; touch /w/again; echo why > /dev/termination-log; exit 3";
    let mut pod = nested(&ns, "nested", "Always", script);
    pod["spec"]["volumes"] = json!([{"name": "w", "emptyDir": {}}, {"name": "words", "configMap": {"name": "words"}}]);
    pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
    pod["spec"]["initContainers"] = json!([{"name": "first", "image": BUSYBOX,
        "command": ["sh", "-c", "echo initialised > /w/init; chmod 666 /w/init"],
        "volumeMounts": [{"name": "w", "mountPath": "/w"}]}]);
    let container = &mut pod["spec"]["containers"][0];
    container["env"] = json!([{"name": "A", "value": "b c"}]);
    container["securityContext"] = json!({"runAsUser": 1234, "runAsGroup": 2345, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false});
    container["volumeMounts"] = json!([{"name": "w", "mountPath": "/w"}, {"name": "words", "mountPath": "/words"}]);
    container["readinessProbe"] = json!({"exec": {"command": ["pidof", "sleep"]}, "periodSeconds": 1});
    ns.apply(&pod.to_string());
    let again =
        ns.until_pod("nested", PATIENCE, |pod| status(pod)["restartCount"] == 1 && status(pod)["ready"] == true);
    let last = &status(&again)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["message"]), (&json!(3), &json!("why\n")), "{last}");
    let expected = "run b c 1234:2345 configured initialised\ntouch: /no: Read-only file system";
    assert_eq!(ns.kubectl(&["logs", "nested", "--previous"]).ok(), expected);
    assert_eq!(ns.kubectl(&["logs", "nested"]).ok(), expected);
    let exec = ns.kubectl(&["exec", "nested", "-c", "main", "--", "sh", "-c", "id -u; cat /proc/1/comm; exit 5"]);
    assert_eq!(exec.code, Some(5), "{exec:?}");
    assert!(exec.stdout.starts_with("1234\nsleep\n"), "{exec:?}");

    // It is Apptainer that made it; killed, it takes its container along, and the pod goes on.
    let (sleep, apptainer) = process(&ns, "nested", "sleep 86123").expect("the command on its node");
    let node = hpk_e2e::job_of(ns.name(), "nested").expect("its job").node;
    let parent = sx(&node, None, &["ps", "-ww", "-o", "args=", "-p", &apptainer]);
    assert!(parent.ok().starts_with("Apptainer runtime parent"), "{parent:?}");
    sx(&node, None, &["kill", "-KILL", &apptainer]).ok();
    ns.until_pod("nested", PATIENCE, |pod| status(pod)["restartCount"] == 2 && status(pod)["ready"] == true);
    let (fresh, _) = process(&ns, "nested", "sleep 86123").expect("the command on its node");
    assert_ne!(fresh, sleep);
    ns.delete("pod", "nested");
    eventually("nothing is left of the pod", PATIENCE, || {
        let list = sx(&node, None, &["ps", "-e", "-ww", "-o", "args="]);
        (!list.ok().contains("sleep 86123")).then_some(())
    });
}

#[test]
fn set_up_errors_are_told_as_by_the_native_launcher() {
    let ns = Namespace::new("nestederrors");
    let mut typo = nested(&ns, "typo", "Never", "");
    typo["spec"]["containers"][0]["command"] = json!(["no-such-command"]);
    ns.apply(&typo.to_string());
    let mut unknown = nested(&ns, "unknown", "Never", "true");
    unknown["metadata"]["annotations"] = json!({"runtime.hpk.io/launcher": "runc"});
    ns.apply(&unknown.to_string());
    let end = ns.until_pod("typo", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let terminated = &status(&end)["state"]["terminated"];
    assert_eq!((&terminated["exitCode"], &terminated["reason"]), (&json!(128), &json!("StartError")));
    ns.until_event("typo", "Failed", "exec: \"no-such-command\": executable file not found in $PATH");
    let text = "metadata.annotations[runtime.hpk.io/launcher] is not supported by HPK, the pod is not started: \
                write auto, native or apptainer";
    ns.until_event("unknown", "Unsupported", text);
}

/// The launchers' own tests (hpk-sys, containers), as a static program in alice's home, seen by the nodes.
fn launcher_tests(folder: &Path) -> std::io::Result<()> {
    let target = "x86_64-unknown-linux-gnu";
    let flags = format!("target.{target}.rustflags=[\"-C\",\"target-feature=+crt-static\"]");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let built = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args(["test", "--no-run", "--quiet", "--locked", "--message-format=json", "-p", "hpk-sys", "--test"])
        .args(["containers", "--target", target, "--config", &flags])
        .output()?;
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let text = String::from_utf8_lossy(&built.stdout).into_owned();
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    std::fs::create_dir_all(folder)?;
    std::fs::copy(program.unwrap_or_default(), folder.join("tests"))?;
    for path in [folder.to_owned(), folder.join("tests")] {
        std::os::unix::fs::chown(path, Some(1000), Some(1000))?;
    }
    Ok(())
}

#[test]
#[cfg_attr(not(feature = "site"), ignore = "about a compute node")]
fn the_launchers_tests_hold_for_both_on_a_node() {
    let site = std::env::var("SITE_DIR").unwrap_or_else(|_| "/var/tmp/hpk-site".to_owned());
    launcher_tests(&Path::new(&site).join("home/alice/launchers")).expect("the tests' program");
    let run = |variables: &[&str], tests: &[&str]| {
        let (script, folder) = (include_str!("../scripts/parent.sh"), format!("{HOME}/launchers"));
        let mut command = vec!["env"];
        command.extend(variables.iter().filter(|v| v.starts_with("FUSE")));
        command.extend(["bash", "-c", script, "parent", &folder, "env"]);
        command.extend(["HPK_SYS_INSIDE=1", "HPK_SYS_SCRATCH=/hpk/scratch"]);
        command.extend(variables);
        command.push("/hpk/pod/tests");
        command.extend(tests);
        let run = sx("c1", Some("alice"), &command);
        assert!(run.ok().contains("test result: ok") && !run.stdout.contains(" 0 passed"), "{run:?}");
    };
    let nested = ["HPK_SYS_APPTAINER=/usr/bin/apptainer", "HPK_SYS_SHIM=/hpk-pause"];
    run(&[], &[]);
    run(&nested, &[]);
    run(&[nested[0], nested[1], "FUSE=1"], &[]);
}
