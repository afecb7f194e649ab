//! The same tests once more: for an ordinary user, and with the system calls of old kernels.

use crate::common;
use crate::common::World;
use crate::{fails, nested, run};
use hpk_sys::launch::{FailureKind, Security};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Runs this program's tests again as an ordinary user would see them: as uid 0 of a user namespace that is uid 1000 outside.
fn rerun_in_user_namespace(map: &str, setgroups: &str, filter: &[&str]) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let world = World::new();
    let program = world.path("tests");
    fs::copy(std::env::current_exe().expect("our path"), &program).expect("a copy that uid 1000 can reach");
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut holder = Command::new("unshare")
        .args(["-U", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut stdin = holder.stdin.take().expect("a pipe");
    // An echo tells that the namespace exists.
    stdin.write_all(b"x").expect("a byte");
    std::io::Read::read(&mut holder.stdout.take().expect("a pipe"), &mut [0]).expect("its echo");
    let proc = format!("/proc/{}", holder.id());
    fs::write(format!("{proc}/setgroups"), setgroups).expect("setgroups");
    fs::write(format!("{proc}/uid_map"), map).expect("a map");
    fs::write(format!("{proc}/gid_map"), map).expect("a map");
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-U", "-S", "0", "-G", "0", "-t", &holder.id().to_string()]);
    if setgroups == "deny" {
        nsenter.arg("--preserve-credentials");
    }
    let output = nsenter
        .args(["unshare", "-m", "-i", "-p", "-f", "--mount-proc"])
        .arg(&program)
        .args(filter)
        .env("HPK_SYS_INSIDE", "1")
        .output()
        .expect("nsenter");
    drop(stdin);
    holder.wait().expect("cat ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && !text.contains(" 0 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn inside() -> bool {
    std::env::var_os("HPK_SYS_INSIDE").is_some()
}

#[test]
fn all_of_this_works_in_a_user_namespace_with_a_range() {
    if !inside() {
        rerun_in_user_namespace("0 1000 1\n1 100000 65536\n", "allow", &[]);
    }
}

#[test]
fn with_one_id_it_works_and_other_users_are_refused_clearly() {
    if !inside() {
        let filter = [
            "--exact",
            "again::with_one_id_it_works_and_other_users_are_refused_clearly",
            "sessions::a_session_joins_a_container",
            "start::a_terminal_is_the_containers_own",
            "mounts::mounts_make_their_mount_points_and_keep_their_order",
            "start::writes_go_to_the_upper_layer_and_a_fresh_run_does_not_see_them",
            "mounts::sub_paths_stay_in_their_volume",
        ];
        return rerun_in_user_namespace("0 1000 1\n", "deny", &filter);
    }
    if hpk_sys::ids::Ids::of_self().expect("ids").uids.count() > 1 {
        return;
    }
    let world = World::new();
    let refused = |security: Security| {
        let mut spec = world.spec(&["true"]);
        spec.security = security;
        let error = fails(&spec);
        assert_eq!(error.kind(), FailureKind::Config);
        error.to_string()
    };
    assert!(
        refused(Security { uid: 1000, ..Security::default() })
            .starts_with("securityContext.runAsUser: id 1000 does not exist in this pod")
    );
    assert!(refused(Security { gid: 7, ..Security::default() }).starts_with("securityContext.runAsGroup: id 7"));
    assert!(
        refused(Security { groups: vec![5], ..Security::default() }).starts_with("securityContext.supplementalGroups:")
    );
    assert_eq!(run(&world.spec(&["id", "-u"])).0, "0\n");
}

/// Nested Apptainer is left out: it hands over detached mounts, which old kernels do not have (ADR 31).
#[test]
fn on_old_kernels_all_of_this_holds() {
    if !nested() {
        common::old_kernel::again(libc::ENOSYS, "on_old_kernels");
    }
}

#[test]
fn on_old_kernels_in_sandboxes_all_of_this_holds() {
    if !nested() {
        common::old_kernel::again(libc::EPERM, "on_old_kernels");
    }
}
