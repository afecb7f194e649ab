//! Steps by a fake srun, for what a good Slurm does not do.

use super::*;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

/// Runs a step by a shell script in srun's place, which is asked for its plug-ins first. The news, and what the log has.
async fn step_by(script: &str, flags: &[&str]) -> (Vec<StepNews>, String) {
    let tmp = tempfile::tempdir().unwrap();
    let fake = tmp.path().join("srun");
    std::fs::write(&fake, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    // The pod's id is the folder's name, and its place on this node is named by that.
    let pod = tmp.path().join("pods").join(format!("fake-{}", fake.display()).replace('/', "-"));
    let inside = pod.join(hpk_layout::pod::INSIDE);
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::write(inside.join(hpk_layout::pod::step(0)), serde_json::to_vec(&StepFile::default()).unwrap()).unwrap();
    let mut keeper = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let pidfd = hpk_sys::rank::pidfd(Pid::from_raw(i32::try_from(keeper.id()).unwrap())).unwrap();
    let (out, log_out) = std::io::pipe().unwrap();
    let (mut err, log_err) = std::io::pipe().unwrap();
    drop(out);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
    let start = StepStart { container: "main".to_owned(), instance: 0, flags };
    let fds = vec![pidfd, OwnedFd::from(log_out), OwnedFd::from(log_err)];
    let (read, _write) = ours.into_split();
    let mut lines = BufReader::new(read).lines();
    let listen = async {
        let mut news = Vec::new();
        while let Ok(Some(line)) = lines.next_line().await {
            news.push(serde_json::from_str(&line).unwrap());
        }
        news
    };
    let (news, ()) = tokio::join!(listen, run_by(Ok(fake), pod, start, fds, theirs));
    let _ = keeper.kill();
    let _ = keeper.wait();
    let mut log = String::new();
    err.read_to_string(&mut log).unwrap();
    (news, log)
}

const LIST: &str = "[ \"$1\" != --mpi=list ] || { printf 'MPI plugin types are...\\n\\tnone\\n\\tpmix\\n'; exit; }";

/// A Slurm that lists PMIx and cannot do it: its own words are the reason, and nothing is said to have run.
#[tokio::test]
async fn a_slurm_whose_pmix_fails() {
    let words = "srun: error: mpi/pmix_v5: init: (null) [0]: PMIx library cannot be loaded";
    let script = format!("{LIST}\necho '{words}' >&2; echo 'srun: error: cannot create mpi context' >&2; exit 1");
    let (news, log) = step_by(&script, &[]).await;
    let [StepNews::Ended { code: 1, words: said }] = &news[..] else { panic!("{news:?}") };
    assert!(said.contains(words) && said.contains("cannot create mpi context"), "{said}");
    assert!(log.contains(words), "{log}");
}

/// As Slurm 24.11 says it when slurmstepd cannot load its plug-in on one of the nodes.
#[tokio::test]
async fn the_first_error_is_told_of_many_words() {
    let words = [
        "srun: error: Task launch for StepId=78.0 failed on node c2: Unspecified error",
        "srun: error: Application launch failed: Unspecified error",
        "srun: Job step aborted: Waiting up to 12 seconds for job step to finish.",
        "slurmstepd-c1: error: *** STEP 78.0 ON c1 CANCELLED AT 2026-11-29T08:49:19 ***",
        "srun: error: c1: tasks 0-1: Killed",
    ];
    let (news, _) = step_by(&format!("{LIST}\nprintf '%s\\n' '{}' >&2; exit 137", words.join("' '")), &[]).await;
    let [StepNews::Ended { code: 137, words: said }] = &news[..] else { panic!("{news:?}") };
    assert_eq!(*said, [words[0], words[3], words[4]].join("; "));
}

/// `--mpi` is what Slurm lists, unless the user says it.
#[tokio::test]
async fn mpi_by_what_slurm_lists() {
    let tell = "echo \"$@\" >&2; exit 3";
    let (news, log) = step_by(&format!("{LIST}\n{tell}"), &[]).await;
    assert!(log.contains("--mpi=pmix"), "{log}");
    assert!(matches!(&news[..], [StepNews::Ended { code: 3, .. }]), "{news:?}");
    let (_, log) = step_by(&format!("{LIST}\n{tell}"), &["--mpi=none", "--label"]).await;
    assert!(log.contains("--mpi=none") && !log.contains("pmix") && !log.contains("--label"), "{log}");
    let none = "[ \"$1\" != --mpi=list ] || { echo none; exit; }";
    let (_, log) = step_by(&format!("{none}\n{tell}"), &[]).await;
    assert!(!log.contains("--mpi"), "{log}");
}

/// A rank's news that are cut off, words of Slurm's in between: what is whole is heard, the step ends once.
#[tokio::test]
async fn an_srun_that_dies_in_the_middle() {
    let script = format!(
        "{LIST}\nprintf '0 n{{\"started\":{{\"of\":{{\"rank\":0,\"node\":\"c1\"}},\"ranks\":2}}}}\\nslurmstepd: error: x\\n1 n{{\"star'; kill -9 $$"
    );
    let (news, log) = step_by(&script, &[]).await;
    let [StepNews::Started { ranks: 2, .. }, StepNews::Ended { code: 137, .. }] = &news[..] else { panic!("{news:?}") };
    assert!(log.contains("slurmstepd: error: x"), "{log}");
}
