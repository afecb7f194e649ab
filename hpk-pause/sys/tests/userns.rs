//! Programs in user namespaces.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use hpk_sys::userns::{self, SubIds, UsernsError};
use std::path::Path;

fn sh(script: &str, ids: Option<SubIds>) -> Result<i32, UsernsError> {
    userns::spawn_with(Path::new("/bin/sh"), &["-c".into(), script.into()], ids)?.wait()
}

#[test]
fn one_id_is_root_inside() {
    let script = "test $(id -u) = 0 && test $(id -g) = 0 && mount -t tmpfs none /mnt && exit 17";
    assert_eq!(sh(script, None).expect("a namespace"), 17);
    assert_eq!(sh("kill -TERM $$", None).expect("a namespace"), 143);
    // Its mounts were its own.
    assert!(!std::fs::read_to_string("/proc/self/mounts").expect("mounts").contains(" /mnt tmpfs"));
}

#[test]
fn a_range_gives_other_owners() {
    if !userns::has_mappers() {
        panic!("newuidmap and newgidmap are needed (apt-get install uidmap)");
    }
    // Root may map what /etc/subuid gives it.
    let Some(ids) = SubIds::of_self() else {
        // Without a range there is a clear error for a made-up one.
        let error =
            sh("true", Some(SubIds { uids: (100_000, 65_536), gids: (100_000, 65_536) })).expect_err("no range");
        assert!(matches!(error, UsernsError::Map { .. }), "{error}");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    let script = format!("touch {0} && chown 33:44 {0} && test $(stat -c %u:%g {0}) = 33:44", file.display());
    assert_eq!(sh(&script, Some(ids)).expect("a namespace"), 0);
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&file).expect("a file"));
    assert_eq!(owner, ids.uids.0 + 32);
    assert_eq!(userns::remove_tree(dir.path()).expect("a removal"), 0);
    assert!(!dir.path().exists());
}

#[test]
fn a_program_that_is_missing_is_told() {
    let error = userns::spawn_with(Path::new("/no/such"), &[], None).expect_err("no program");
    assert_eq!(error.to_string(), "exec: \"/no/such\": stat /no/such: no such file or directory");
}
