//! `kubectl logs` where it is hard: while files are rotated, by time, of the instance before.

use hpk_e2e::{Namespace, PATIENCE, eventually};
use std::time::Duration;

/// Upstream's kubelet shows only the newest file; a reader here goes on from the rotated one.
#[test]
fn follower_loses_nothing_at_a_rotation() {
    const LINES: usize = 130_000;
    let ns = Namespace::new("rotate");
    // 100 bytes a line: 13 MB, where a file is rotated at 8 MiB. It waits until the follower reads.
    let script = format!(
        "echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; \
         awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) printf \"%099d\\n\", i }}'; echo end"
    );
    ns.run_script("talk", "Never", &script);
    ns.wait_ready("talk");
    // Whatever is not the next number is printed; then how far it came.
    let follow = "kubectl -n $NS logs -f talk | awk '\
        $1 == \"ready\" { system(\"kubectl -n \" ENVIRON[\"NS\"] \" exec talk -- touch /tmp/go\"); next } \
        $1 == \"end\" { exit } $1 + 0 != n + 1 { print \"after \" n \": \" $0; exit } { n++ } END { print n }'";
    let read = ns.shell(&format!("timeout 120 bash -c '{}'", follow.replace('\'', r"'\''")));
    assert_eq!(read.stdout.trim_end(), LINES.to_string(), "{read:?}");
    let files =
        ns.shell("stat -c %s ~/.hpk/pods/$(kubectl -n $NS get pod talk -o jsonpath={.metadata.uid})/pod/logs/main/*");
    let sizes: Vec<u64> = files.ok().lines().map(|size| size.parse().unwrap()).collect();
    // tests/site/hpk-up.sh gives --container-log-max-size; the records are longer than the lines by their stamps.
    assert!(sizes.len() >= 3 && sizes.iter().all(|size| *size <= 8 << 20), "rotated at 8 MiB: {sizes:?}");
    let configz = ns.shell("kubectl get --raw /api/v1/nodes/hpk-site/proxy/configz");
    let configz: serde_json::Value = serde_json::from_str(configz.ok()).unwrap();
    let configz = &configz["kubeletconfig"];
    assert_eq!(
        (configz["containerLogMaxSize"].as_str(), configz["containerLogMaxFiles"].as_u64()),
        (Some("8Mi"), Some(8))
    );
    // A tail that is longer than the newest file is had all the same.
    let tail = ns.shell(&format!("kubectl -n $NS logs talk --tail={} | wc -l", LINES / 2));
    assert_eq!(tail.ok(), (LINES / 2).to_string());
}

/// The client reads nothing until the pod's job has left Slurm, its supervisor and its link with it; far more is
/// waiting than the buffers on the way hold.
#[test]
#[cfg_attr(not(feature = "site"), ignore = "about Slurm")]
fn a_slow_follower_gets_the_rest_after_the_pod_has_gone() {
    const LINES: usize = 400_000;
    let ns = Namespace::new("slow");
    let script = format!(
        "echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; \
         awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) printf \"%099d\\n\", i }}'; echo end"
    );
    ns.run_script("talk", "Never", &script);
    ns.wait_ready("talk");
    let read = ns.shell(
        "timeout 150 kubectl -n $NS logs -f talk | {
            read first; kubectl -n $NS exec talk -- touch /tmp/go
            while squeue -h -n $NS/talk | grep -q .; do sleep 0.5; done
            awk '$1 == \"end\" { print \"end\"; next } $1 + 0 != n + 1 { print \"after \" n \": \" $0; exit } \
                { n++ } END { print n }'
         }",
    );
    assert_eq!(read.stdout.trim_end(), format!("end\n{LINES}"), "{read:?}");
    assert_eq!(read.stderr, "", "{read:?}");
}

#[test]
fn since_gives_what_is_young_enough_with_its_time() {
    let ns = Namespace::new("since");
    ns.run_script("clock", "Always", "i=0; while :; do echo tick $i; i=$((i+1)); sleep 1; done");
    eventually("twelve ticks", PATIENCE, || ns.kubectl(&["logs", "clock"]).stdout.contains("tick 12").then_some(()));
    let script = "date +%s.%N; kubectl -n $NS logs clock --since=5s --timestamps | \
                  while read -r at text; do echo \"$(date -d $at +%s.%N) $text\"; done";
    let out = ns.shell(script);
    let mut lines = out.ok().lines();
    let asked: f64 = lines.next().and_then(|l| l.parse().ok()).expect("the time of asking");
    let ticks: Vec<(f64, u32)> = lines
        .filter_map(|line| {
            let (at, text) = line.split_once(' ')?;
            Some((at.parse().ok()?, text.strip_prefix("tick ")?.parse().ok()?))
        })
        .collect();
    assert!((3..=6).contains(&ticks.len()), "five seconds of ticks: {}", out.stdout);
    assert!(ticks.iter().all(|(at, _)| *at > asked - 5.1), "none older than five seconds: {}", out.stdout);
    assert!(ticks.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1), "in order: {}", out.stdout);
}

#[test]
fn previous_is_the_instance_before() {
    let ns = Namespace::new("previous");
    let mut pod = ns.script_pod(
        "twice",
        "Always",
        "echo $(wc -l < /w/n) | tee -a /w/n; [ $(wc -l < /w/n) -gt 2 ] && exec sleep 600; exit 3",
    );
    pod["spec"]["volumes"] = serde_json::json!([{"name": "w", "emptyDir": {}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = serde_json::json!([{"name": "w", "mountPath": "/w"}]);
    pod["spec"]["initContainers"] = serde_json::json!([{"name": "first", "image": hpk_e2e::BUSYBOX,
        "command": ["touch", "/w/n"], "volumeMounts": [{"name": "w", "mountPath": "/w"}]}]);
    ns.apply(&pod.to_string());
    let third = |pod: &serde_json::Value| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 2 && status["state"]["running"].is_object()
    };
    ns.until_pod("twice", Duration::from_secs(90), third);
    eventually("the third has spoken", PATIENCE, || (ns.kubectl(&["logs", "twice"]).stdout == "2\n").then_some(()));
    assert_eq!(ns.kubectl(&["logs", "twice", "--previous"]).ok(), "1");
    let none = ns.kubectl(&["logs", "twice", "-c", "first", "--previous"]).err();
    assert!(none.contains("previous terminated container \"first\" in pod \"twice\" not found"), "{none}");
}
