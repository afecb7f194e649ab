//! Mount points and the folders above them, with no allocation: a path lives on the stack.

use super::{Outcome, check, close, errno};
use libc::c_int;

const PATH_MAX: usize = 4096;
/// Links followed for one mount point, as the kernel's own limit for nested links used to be.
const MAX_LINKS: u32 = 8;

/// A NUL-terminated path on the stack.
pub(super) struct PathBuffer {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl PathBuffer {
    pub(super) fn new(path: &[u8]) -> Result<Self, c_int> {
        let mut buffer = Self { bytes: [0; PATH_MAX], len: 0 };
        buffer.append(path)?;
        Ok(buffer)
    }

    pub(super) fn append(&mut self, more: &[u8]) -> Outcome {
        let end = self.len + more.len();
        match self.bytes.get_mut(self.len..end) {
            Some(place) if end < PATH_MAX => place.copy_from_slice(more),
            _ => return Err(libc::ENAMETOOLONG),
        }
        self.len = end;
        Ok(())
    }

    pub(super) fn ptr(&self) -> *const libc::c_char {
        self.bytes.as_ptr().cast()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Makes a mount point, and the folders above it. A link that leads nowhere is followed and its target made, as container
/// engines do (`/etc/resolv.conf` is often such a link).
pub(super) fn ensure(path: &[u8], is_dir: bool, depth: u32) -> Outcome {
    if let Some(parent) = parent_of(path) {
        make_dirs(parent, 0o755, depth)?;
    }
    if is_dir {
        return make_dirs(path, 0o755, depth);
    }
    let buffer = PathBuffer::new(path)?;
    // SAFETY: a NUL-terminated buffer.
    match check(unsafe {
        libc::open(buffer.ptr(), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC, 0o644)
    }) {
        Ok(fd) => {
            close(fd);
            Ok(())
        }
        Err(libc::EEXIST) => match dangling(&buffer, depth)? {
            Some(target) => ensure(target.as_slice(), false, depth + 1),
            None => Ok(()),
        },
        Err(e) => Err(e),
    }
}

pub(super) fn parent_of(path: &[u8]) -> Option<&[u8]> {
    let at = path.iter().rposition(|&b| b == b'/')?;
    if at == 0 { None } else { path.get(..at) }
}

/// mkdir -p, following links that lead nowhere.
pub(super) fn make_dirs(path: &[u8], mode: u32, depth: u32) -> Outcome {
    // The whole of it often exists but for the last component.
    let whole = PathBuffer::new(path)?;
    // SAFETY: a NUL-terminated buffer.
    match check(unsafe { libc::mkdir(whole.ptr(), mode) }) {
        Ok(_) => return Ok(()),
        Err(libc::EEXIST) => {
            return match dangling(&whole, depth)? {
                Some(target) => make_dirs(target.as_slice(), mode, depth + 1),
                None => Ok(()),
            };
        }
        Err(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    for (at, _) in path.iter().enumerate().filter(|&(at, &b)| at > 0 && b == b'/') {
        make_one(path.get(..at).unwrap_or(path), mode, depth)?;
    }
    make_one(path, mode, depth)
}

pub(super) fn make_one(path: &[u8], mode: u32, depth: u32) -> Outcome {
    let buffer = PathBuffer::new(path)?;
    // SAFETY: a NUL-terminated buffer.
    match check(unsafe { libc::mkdir(buffer.ptr(), mode) }) {
        Ok(_) => Ok(()),
        Err(libc::EEXIST) => match dangling(&buffer, depth)? {
            Some(target) => make_dirs(target.as_slice(), mode, depth + 1),
            None => Ok(()),
        },
        Err(e) => Err(e),
    }
}

/// The target of a link that leads nowhere; None for anything that exists.
pub(super) fn dangling(path: &PathBuffer, depth: u32) -> Result<Option<PathBuffer>, c_int> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated buffer and a struct that live across the call.
    match check(unsafe { libc::stat(path.ptr(), &raw mut stat) }) {
        Ok(_) => return Ok(None),
        Err(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    if depth >= MAX_LINKS {
        return Err(libc::ELOOP);
    }
    let mut link = [0u8; PATH_MAX];
    // SAFETY: the buffer is valid for the length that is passed.
    let len = unsafe { libc::readlink(path.ptr(), link.as_mut_ptr().cast(), PATH_MAX) };
    let Ok(len) = usize::try_from(len) else { return Err(errno()) };
    let link = link.get(..len).unwrap_or(&[]);
    if link.first() == Some(&b'/') {
        return Ok(Some(PathBuffer::new(link)?));
    }
    let mut target = PathBuffer::new(parent_of(path.as_slice()).unwrap_or(b""))?;
    target.append(b"/")?;
    target.append(link)?;
    Ok(Some(target))
}
