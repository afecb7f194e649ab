//! This test program once more, as on Linux 4.18: the calls that came later fail.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set where it runs so.
const UNDER: &str = "HPK_SYS_OLD_KERNEL";
/// The first call that came after 4.18 (pidfd_send_signal), and one that is later than all of them.
const LATER: std::ops::Range<i64> = 424..512;

pub fn is() -> bool {
    std::env::var_os(UNDER).is_some()
}

/// Runs all tests of this program but those whose names contain `skip`, with `errno` as the answer to later calls. That
/// to clone3 is always ENOSYS: with another one glibc makes no threads.
pub fn again(errno: i32, skip: &str) {
    if is() {
        return;
    }
    let filter = |numbers: &mut dyn Iterator<Item = i64>, errno: i32| -> BpfProgram {
        let rules = numbers.map(|number| (number, Vec::new())).collect();
        let answer = SeccompAction::Errno(errno.cast_unsigned());
        let arch = std::env::consts::ARCH.try_into().expect("a known machine");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, arch).expect("a filter");
        filter.try_into().expect("a filter")
    };
    let threads = filter(&mut std::iter::once(libc::SYS_clone3), libc::ENOSYS);
    let others = filter(&mut LATER.filter(|number| *number != libc::SYS_clone3), errno);
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--skip", skip]).env(UNDER, "1");
    let both = move || seccompiler::apply_filter(&threads).and_then(|()| seccompiler::apply_filter(&others));
    // SAFETY: system calls alone.
    unsafe { command.pre_exec(move || both().map_err(std::io::Error::other)) };
    let output = command.output().expect("this program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(" passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}
