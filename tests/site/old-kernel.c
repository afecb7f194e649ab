/*
 * Runs a command as on Linux 4.18 (RHEL 8), as far as system calls tell: every call that came later is answered as an old
 * kernel does (enosys), or as an old container sandbox does that does not know it (eperm).
 *
 *   old-kernel enosys|eperm CMD ARG...     as root: no_new_privs would end newuidmap's rights
 *
 * clone3 is always answered by ENOSYS: with EPERM no program of glibc 2.34 or later can make a thread, ours or another.
 *
 * What it does not take away: newer flags of older calls, and features that are no calls (overlayfs in user namespaces).
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __x86_64__
#error "numbers of system calls are x86_64's"
#endif

/* 4.18's last call on x86_64 is rseq, 334. Later ones begin at 424 (pidfd_send_signal, 5.1). */
#define FIRST_LATER 335
/* waitid by a pidfd came with 5.4. */
#define BY_PIDFD 3

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define UNLESS_EQUAL(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)
#define ANSWER(what) BPF_STMT(BPF_RET | BPF_K, what)

int main(int argc, char **argv)
{
	int error = 0;
	if (argc > 2 && !strcmp(argv[1], "enosys"))
		error = ENOSYS;
	if (argc > 2 && !strcmp(argv[1], "eperm"))
		error = EPERM;
	if (!error) {
		fprintf(stderr, "usage: old-kernel enosys|eperm CMD ARG...\n");
		return 2;
	}
	struct sock_filter rules[] = {
		LOAD(arch),
		UNLESS_EQUAL(AUDIT_ARCH_X86_64, 9),
		LOAD(nr),
		UNLESS_EQUAL(__NR_clone3, 1),
		ANSWER(SECCOMP_RET_ERRNO | ENOSYS),
		BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST_LATER, 0, 1),
		ANSWER(SECCOMP_RET_ERRNO | (unsigned)error),
		UNLESS_EQUAL(__NR_waitid, 3),
		LOAD(args[0]),
		UNLESS_EQUAL(BY_PIDFD, 1),
		ANSWER(SECCOMP_RET_ERRNO | EINVAL),
		ANSWER(SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof(rules) / sizeof(rules[0]), .filter = rules};
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) {
		perror("old-kernel: seccomp");
		return 1;
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 127;
}
