//! Programs in user namespaces.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_sys::userns::{self, SubIds, Surroundings, UsernsError, Users};
use std::path::Path;

fn sh(script: &str, users: Users) -> Result<i32, UsernsError> {
    run(script, Surroundings { users, mounts: true, ..Surroundings::default() })
}

fn run(script: &str, around: Surroundings<'_>) -> Result<i32, UsernsError> {
    userns::start(Path::new("/bin/sh"), &["-c".into(), script.into()], around)?.wait()
}

#[test]
fn one_id_is_root_inside() {
    let script = "test $(id -u) = 0 && test $(id -g) = 0 && mount -t tmpfs none /mnt && exit 17";
    assert_eq!(sh(script, Users::One).expect("a namespace"), 17);
    assert_eq!(sh("kill -TERM $$", Users::One).expect("a namespace"), 143);
    // Its mounts were its own.
    assert!(!std::fs::read_to_string("/proc/self/mounts").expect("mounts").contains(" /mnt tmpfs"));
}

#[test]
fn a_range_gives_other_owners() {
    if !userns::has_mappers() {
        panic!("newuidmap and newgidmap are needed (apt-get install uidmap)");
    }
    // Root may map what /etc/subuid gives it.
    let Some(ids) = userns::own_subids() else {
        // Without a range there is a clear error for a made-up one.
        let error = sh("true", Users::Range(SubIds { uids: (100_000, 65_536), gids: (100_000, 65_536) }))
            .expect_err("no range");
        assert!(matches!(error, UsernsError::Map { .. }), "{error}");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    let script = format!("touch {0} && chown 33:44 {0} && test $(stat -c %u:%g {0}) = 33:44", file.display());
    assert_eq!(sh(&script, Users::Range(ids)).expect("a namespace"), 0);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&file).expect("a file"));
    assert_eq!(owner, ids.uids.0 + 32);
    assert_eq!(userns::remove_tree(dir.path()).expect("a removal"), 0);
    assert!(!dir.path().exists());
}

/// A child is a copy of a process in which another thread holds a lock of libc's: it must not wait for that lock. (With glibc
/// 2.41 or later this hung.)
#[test]
fn many_threads_start_programs_at_once() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    assert_eq!(sh("exit 7", Users::One).expect("a namespace"), 7);
                }
            });
            scope.spawn(|| {
                for _ in 0..100 {
                    assert!(std::process::Command::new("/bin/true").status().expect("a program").success());
                }
            });
        }
    });
}

#[test]
fn a_program_that_is_missing_is_told() {
    let error = userns::start(Path::new("/no/such"), &[], Surroundings::default()).expect_err("no program");
    assert_eq!(error.to_string(), "exec: \"/no/such\": stat /no/such: no such file or directory");
}

#[test]
fn surroundings_are_the_ones_asked_for() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let env = [("ONLY".into(), "this".into())];
    let around = Surroundings {
        users: Users::One,
        network: true,
        host_name: true,
        env: Some(&env),
        folder: Some(Path::new("/proc")),
        stderr: Some(writer.into()),
        ..Surroundings::default()
    };
    let script = "test \"$ONLY\" = this && test -z \"$HOME\" && test $(/bin/pwd) = /proc && \
        /bin/hostname elsewhere && /bin/readlink /proc/self/ns/net >&2";
    assert_eq!(run(script, around).expect("a program"), 0);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut reader, &mut said).expect("its words");
    let ours = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
    assert!(said.starts_with("net:[") && said.trim() != ours.to_string_lossy(), "{said}");
    assert_ne!(std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim(), "elsewhere");
}

#[test]
fn without_namespaces_it_is_the_callers_own() {
    let ours = std::fs::read_link("/proc/self/ns/user").expect("a namespace");
    let script = format!("test \"$(readlink /proc/self/ns/user)\" = '{}'", ours.display());
    assert_eq!(run(&script, Surroundings::default()).expect("a program"), 0);
}
