//! The RuntimeDefault seccomp filter.
//!
//! Owns which system calls a container may not make. The list is that of what container engines' default profile refuses to a
//! container without added capabilities (moby `profiles/seccomp/default.json`, used by containerd too), turned around:
//! what is named here fails with EPERM, everything else is left to the kernel's own checks. clone3 fails with ENOSYS, as there, because
//! its flags cannot be looked at, and C libraries then use clone, whose flags can.

use crate::program::SockFilter;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

/// The filter could not be made for this machine.
#[derive(Debug, Error)]
#[error("seccompProfile RuntimeDefault: {0}")]
pub struct SeccompError(#[from] seccompiler::BackendError);

/// Compiled filters, to be installed in the order in which they are held.
#[derive(Clone, Debug)]
pub struct Filter {
    programs: Arc<[SockFilter]>,
}

impl Filter {
    pub(crate) fn instructions(&self) -> Vec<SockFilter> {
        self.programs.to_vec()
    }
}

/// Refused to every container without the capability for it.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Namespaces that clone may not make: mount, cgroup, UTS, IPC, user, PID, network.
const CLONE_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Makes the filter; costs about a millisecond, so make it once for a pod.
///
/// # Errors
/// On an architecture that the compiler does not know.
pub fn runtime_default() -> Result<Filter, SeccompError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED.iter().map(|&call| (call, Vec::new())).collect();
    let clone_rules = CLONE_NAMESPACES
        .iter()
        .map(|&flag| {
            let flag = u64::try_from(flag).unwrap_or(0);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
            SeccompRule::new(vec![condition])
        })
        .collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_clone, clone_rules);
    // Sockets of the kernel's own machinery that containers have no use for.
    let vsock = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AF_VSOCK as u64)?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![vsock])?]);
    let denied = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), arch)?;
    let denied: BpfProgram = denied.try_into()?;
    let programs = with_clone3(&denied);
    Ok(Filter { programs: programs.into() })
}

/// Puts a check for clone3 before the filter (the compiler knows one action a filter only): a load of the system call's number, a
/// comparison, ENOSYS. The architecture is checked by what follows; the number of clone3 is the same on all of them.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn with_clone3(rest: &BpfProgram) -> Vec<SockFilter> {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut out = vec![
        SockFilter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        SockFilter { code: JUMP_EQUAL, jt: 0, jf: 1, k: libc::SYS_clone3 as u32 },
        SockFilter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
    ];
    out.extend(rest.iter().map(|i| SockFilter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }));
    out
}
