//! Mount points and the folders above them, with no allocation: a path lives on the stack.

use super::{Outcome, check, errno};
use libc::c_int;
use std::ffi::CStr;

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

    pub(super) fn c_str(&self) -> &CStr {
        // SAFETY: there is a NUL behind what was appended; the buffer lives as long as the result.
        unsafe { CStr::from_ptr(self.ptr()) }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// A number as text.
pub(super) fn digits(number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    let mut rest = number;
    loop {
        at = at.saturating_sub(1);
        if let Some(place) = buffer.get_mut(at) {
            // A remainder of ten fits.
            *place = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            return buffer.get(at..).unwrap_or(&[]);
        }
    }
}

/// Makes a mount point, and the folders above it. A link that leads nowhere is followed and its target made, as container
/// engines do (`/etc/resolv.conf` is often such a link).
pub(super) fn ensure(path: &[u8], is_dir: bool, depth: u32) -> Outcome {
    if is_dir {
        return make_dirs(path, 0o755, depth);
    }
    let buffer = PathBuffer::new(path)?;
    // Usually only the file itself is missing.
    let made = match make_file(&buffer) {
        Err(libc::ENOENT) => {
            make_dirs(parent_of(path).unwrap_or(b"/"), 0o755, depth)?;
            make_file(&buffer)
        }
        other => other,
    };
    match made {
        Err(libc::EEXIST) => match dangling(&buffer, depth)? {
            Some(target) => ensure(target.as_slice(), false, depth + 1),
            None => Ok(()),
        },
        other => other,
    }
}

/// An empty file by one call; EEXIST for whatever is there, a link too.
pub(super) fn make_file(path: &PathBuffer) -> Outcome {
    // SAFETY: a NUL-terminated buffer.
    check(unsafe { libc::mknod(path.ptr(), libc::S_IFREG | 0o644, 0) })?;
    Ok(())
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

/// What an image has on the way to a path of its own.
#[allow(clippy::large_enum_variant, reason = "nothing may be allocated between clone and exec")]
pub(super) enum Way {
    /// The way ends before the path does.
    Missing,
    /// The path is there, or behind a link that is not plain.
    Plain,
    /// There is a link, which leads here.
    Link(PathBuffer),
}

/// The way to `target`, absolute, by the first link that `image` has on it. What a link gives is a path of its own and never
/// has `..` in it: one that is read wrongly, because another one is behind it, leads to a useless place below the same root,
/// and nowhere else.
pub(super) fn way(image: &[u8], target: &[u8]) -> Way {
    let Ok(mut path) = PathBuffer::new(image) else { return Way::Plain };
    let mut done = 0;
    let ends = target.iter().enumerate().skip(1).filter(|&(_, &b)| b == b'/').map(|(at, _)| at).chain([target.len()]);
    for at in ends {
        let (Some(next), Some(rest)) = (target.get(done..at), target.get(at..)) else { return Way::Plain };
        if path.append(next).is_err() {
            return Way::Plain;
        }
        done = at;
        let mut link = [0u8; PATH_MAX];
        // SAFETY: a NUL-terminated buffer, and one that is valid for the length that is passed.
        let len = unsafe { libc::readlink(path.ptr(), link.as_mut_ptr().cast(), PATH_MAX) };
        let Ok(len) = usize::try_from(len) else {
            match errno() {
                // A folder or file.
                libc::EINVAL => continue,
                _ => return Way::Missing,
            }
        };
        let folder = target.get(..at).and_then(parent_of).unwrap_or(b"");
        let Some(mut led) = follow(folder, link.get(..len).unwrap_or(b"")) else { return Way::Plain };
        return if led.append(rest).is_ok() { Way::Link(led) } else { Way::Plain };
    }
    Way::Plain
}

/// The link's target seen from its folder; None when `..` stands where it cannot simply be taken.
fn follow(mut folder: &[u8], link: &[u8]) -> Option<PathBuffer> {
    let mut rest = link;
    if rest.first() == Some(&b'/') {
        folder = b"";
    }
    while let Some(after) = rest.strip_prefix(b"../") {
        folder = parent_of(folder).unwrap_or(b"");
        rest = after;
    }
    while let Some(after) = rest.strip_prefix(b"/") {
        rest = after;
    }
    if rest.is_empty() || rest.split(|&b| b == b'/').any(|part| part == b"..") {
        return None;
    }
    let mut path = PathBuffer::new(folder).ok()?;
    path.append(b"/").ok()?;
    path.append(rest).ok()?;
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_an_image_are_followed_and_never_upwards() {
        let image = tempfile::tempdir().expect("a folder");
        let root = image.path();
        for folder in ["run", "var/lib", "usr/lib"] {
            std::fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        for (link, to) in [
            ("var/run", "/run"),
            ("var/mail", "../run/mail"),
            ("lib", "usr/lib"),
            ("var/far", "../../../../etc"),
            ("var/up", "lib/../../x"),
            ("var/lib/self", "."),
        ] {
            std::os::unix::fs::symlink(to, root.join(link)).expect("a link");
        }
        let to = |target: &str| way(root.as_os_str().as_encoded_bytes(), target.as_bytes());
        let led = |target: &str| match to(target) {
            Way::Link(path) => Some(String::from_utf8_lossy(path.as_slice()).into_owned()),
            Way::Plain | Way::Missing => None,
        };
        assert_eq!(led("/var/run/secrets/x").as_deref(), Some("/run/secrets/x"));
        assert_eq!(led("/var/mail").as_deref(), Some("/run/mail"));
        assert_eq!(led("/lib/modules").as_deref(), Some("/usr/lib/modules"));
        assert_eq!(led("/var/far/a").as_deref(), Some("/etc/a"));
        assert_eq!(led("/var/lib/self/a").as_deref(), Some("/var/lib/./a"));
        for plain in ["/var/up/a", "/var/lib/a", "/missing/a", "/run"] {
            assert_eq!(led(plain), None, "{plain}");
        }
        assert!(matches!(to("/missing/a"), Way::Missing) && matches!(to("/var/lib/a"), Way::Missing));
        assert!(matches!(to("/run"), Way::Plain) && matches!(to(""), Way::Plain));
    }
}
