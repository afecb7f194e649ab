//! What the login shell has that starts HPK never reaches pods. In a file of its own: HPK is started anew.

use hpk_e2e::{HOME, Namespace, sx};

/// Starts HPK anew from an ordinary shell when it is dropped.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        sx("login", Some("alice"), &["hpk", "down"]);
        sx("login", Some("alice"), &["hpk", "up"]);
    }
}

/// What a pod has of it. `ulimit -c` and `-s`: the site's nodes say, not the login shell.
fn surroundings(ns: &Namespace, pod: &str) -> String {
    let script = "env | grep -E '^(SBATCH|SLURM|SALLOC|SQUEUE|TMPDIR|MY_)' | sort; umask; ulimit -Sn; ulimit -Ss; ulimit -Sc; \
                  ulimit -Hn; touch /tmp/file; stat -c %a /tmp/file";
    ns.run_script(pod, "Never", script);
    ns.wait_phase(pod, "Succeeded");
    ns.kubectl(&["logs", pod]).ok().to_owned()
}

#[test]
fn an_odd_login_shell_is_not_in_pods() {
    let ns = Namespace::new("shell");
    let before = surroundings(&ns, "before");
    assert!(!before.contains('=') && before.contains("0022"), "{before}");

    let _restored = Restored;
    sx("login", Some("alice"), &["hpk", "down"]).ok();
    // Longer than a Unix socket's path may be.
    let tmp = format!("{HOME}/{}", "a-long-name/".repeat(12));
    let variables = "SBATCH_EXPORT=NONE SBATCH_JOB_NAME=mine SBATCH_ARRAY_INX=1-3 SBATCH_OUTPUT=/nowhere/x SBATCH_MEM_PER_CPU=1 \
                     SBATCH_GET_USER_ENV=1 SBATCH_REQUEUE=1 SLURM_JOB_ID=99999 SLURM_NNODES=7 SLURM_NTASKS=7 SLURM_EXPORT_ENV=NONE \
                     SQUEUE_FORMAT=%i SQUEUE_USERS=bob SINFO_FORMAT=%N SACCT_FORMAT=jobid SCANCEL_NAME=none SLURM_TIME_FORMAT=relative \
                     MY_TOKEN=secret";
    let script = format!(
        "mkdir -p {tmp}; umask 0077; ulimit -Sn 128; ulimit -Ss 1024; ulimit -c 0; export TMPDIR={tmp} {variables}; exec hpk up"
    );
    sx("login", Some("alice"), &["bash", "-c", &script]).ok();
    let after = surroundings(&ns, "after");
    assert_eq!(after, before);
    // And the other way round: they are found, exec works, and they are deleted.
    ns.run_script("lives", "Always", "exec sleep 600");
    ns.wait_ready("lives");
    assert_eq!(ns.kubectl(&["exec", "lives", "--", "echo", "there"]).ok(), "there");
    ns.delete("pod", "lives");
    sx("login", Some("alice"), &["rm", "-r", &format!("{HOME}/a-long-name")]).ok();
}
