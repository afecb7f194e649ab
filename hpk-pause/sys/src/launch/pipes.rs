//! Pipes for a child's standard input and output.

use crate::error::LaunchError;
use crate::spawn::Pipes;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Child's ends of its standard input and output, as numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildIo {
    pub(crate) stdin: Option<RawFd>,
    pub(crate) stdout: RawFd,
    pub(crate) stderr: RawFd,
}

pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd), LaunchError> {
    pipe2(OFlag::O_CLOEXEC).map_err(|errno| LaunchError::Resources { what: "create a pipe", errno })
}

/// The child's ends.
#[derive(Debug, Default)]
pub(crate) struct ChildEnds {
    pub(super) stdin: Option<OwnedFd>,
    output: Option<(OwnedFd, OwnedFd)>,
}

impl ChildEnds {
    pub(crate) fn io(&self) -> Option<ChildIo> {
        let (stdout, stderr) = self.output.as_ref()?;
        Some(ChildIo {
            stdin: self.stdin.as_ref().map(AsRawFd::as_raw_fd),
            stdout: stdout.as_raw_fd(),
            stderr: stderr.as_raw_fd(),
        })
    }

    pub(crate) fn fds(self) -> Vec<OwnedFd> {
        let (stdout, stderr) = self.output.unzip();
        [self.stdin, stdout, stderr].into_iter().flatten().collect()
    }
}

/// Pipes for standard input and output, none for a terminal.
pub(crate) fn pipes(stdin: bool, tty: bool) -> Result<(Option<Pipes>, ChildEnds), LaunchError> {
    if tty {
        return Ok((None, ChildEnds::default()));
    }
    let (childs_in, stdin) = if stdin { Some(pipe()?) } else { None }.unzip();
    let (stdout, childs_out) = pipe()?;
    let (stderr, childs_err) = pipe()?;
    Ok((Some(Pipes { stdin, stdout, stderr }), ChildEnds { stdin: childs_in, output: Some((childs_out, childs_err)) }))
}
