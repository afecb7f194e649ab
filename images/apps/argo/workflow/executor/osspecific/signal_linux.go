// Signals and the end of a process, for argoexec on Linux. The published module v4.0.5 calls these five names and has them for
// macOS and Windows only. This file is HPK's, and not upstream's.

package osspecific

import (
	"os"
	"syscall"

	"github.com/argoproj/argo-workflows/v4/util/errors"
)

// Term asks a process to end.
var Term = syscall.SIGTERM

// CanIgnoreSignal tells signals that the kernel and Go's runtime send to argoexec itself: they are not passed on.
func CanIgnoreSignal(s os.Signal) bool {
	return s == syscall.SIGCHLD || s == syscall.SIGURG
}

// Kill sends a signal to the process group that the command leads, or to the process where it leads none. A negative number is
// a group's already.
func Kill(pid int, s syscall.Signal) error {
	if pid > 0 {
		if group, err := syscall.Getpgid(pid); err == nil && group == pid {
			pid = -pid
		}
	}
	return syscall.Kill(pid, s)
}

// Setpgid makes the command the leader of a process group of its own.
func Setpgid(a *syscall.SysProcAttr) {
	a.Setpgid = true
}

// Wait waits for the process. An end other than exit code 0 is an error with the code, 128 and the number of the signal after a
// kill.
func Wait(process *os.Process) error {
	state, err := process.Wait()
	if err != nil {
		return err
	}
	code := state.ExitCode()
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	if code != 0 {
		return errors.NewExitErr(code)
	}
	return nil
}
