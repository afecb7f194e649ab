//! A database on a claim.

use hpk_e2e::{Namespace, PATIENCE, eventually, job_of, processes, sx};
use serde_json::json;

/// What the database has said yes to is there after everything of its pod was killed at once.
#[test]
#[ignore = "needs postgres:1: images/push.sh postgres (make long)"]
fn postgresql_on_a_claim_loses_nothing_when_its_pod_is_killed() {
    let ns = Namespace::new("postgres");
    let script = "set -e
        if [ ! -e /data/db/PG_VERSION ]; then initdb -D /data/db -A trust --no-locale -E UTF8; fi
        exec postgres -D /data/db -c listen_addresses= -c unix_socket_directories=/tmp";
    let probe = json!({"exec": {"command": ["psql", "-U", "postgres", "-qAtc", "select 1"]}, "periodSeconds": 1, "timeoutSeconds": 5});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}],
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
            "securityContext": {"fsGroup": 5000, "fsGroupChangePolicy": "OnRootMismatch"},
            "containers": [{"name": "db", "image": "login:5000/postgres:1", "command": ["sh", "-c", script], "readinessProbe": probe,
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}}});
    ns.apply(&set.to_string());
    let sql = |text: &str| ns.kubectl(&["exec", "db-0", "--", "psql", "-U", "postgres", "-qAtc", text]);
    let ready = || {
        ns.kubectl(&["wait", "--for=create", "pod/db-0", "--timeout=60s"]).ok();
        ns.wait_ready("db-0");
    };
    ready();
    sql("create table t (n int primary key)").ok();
    let mut promised = 0;
    for round in 1..=3 {
        let uid = ns.get("pod", "db-0")["metadata"]["uid"].as_str().expect("a UID").to_owned();
        let node = job_of(ns.name(), "db-0").expect("a job").node;
        let first = promised + 1;
        let said = std::thread::scope(|scope| {
            // One row after the other, each told when the database has it.
            let write = format!(
                "n={first}; while psql -U postgres -qAtc \"insert into t values ($n)\"; do echo $n; n=$((n + 1)); done"
            );
            let writer = scope.spawn({
                let ns = &ns;
                move || ns.kubectl(&["exec", "db-0", "--", "sh", "-c", &write])
            });
            eventually("the database has rows", PATIENCE, || {
                let rows: u32 = sql("select count(*) from t").stdout.trim().parse().ok()?;
                (rows >= promised + 50).then_some(())
            });
            // All of the pod is killed with it, in whatever it was doing.
            let mut all = processes(&node, "hpk-netns work").into_iter();
            let worker = all.find(|line| line.contains(&uid)).expect("the pod's hpk-netns");
            let pid = worker.split_whitespace().next().expect("a number").to_owned();
            sx(&node, None, &["kill", "-KILL", &pid]).ok();
            writer.join().expect("the writer").stdout
        });
        promised = said.lines().filter_map(|line| line.trim().parse().ok()).max().unwrap_or(promised);
        assert!(promised >= first, "round {round}: nothing was said: {said}");
        eventually("another pod has the name", PATIENCE, || {
            let now = ns.kubectl(&["get", "pod", "db-0", "-o", "jsonpath={.metadata.uid}"]).stdout;
            (!now.is_empty() && !now.starts_with(&uid)).then_some(())
        });
        ready();
        let rows = sql(&format!("select count(*) from t where n <= {promised}")).ok().to_owned();
        assert_eq!(rows, promised.to_string(), "round {round}");
        assert_eq!(sql("select count(*) from pg_class where relname = 't'").ok(), "1");
        // A row that was written and not told may be there, too.
        promised = sql("select max(n) from t").ok().parse().expect("a number");
    }
}
