//! How this process uses its memory.

use std::ffi::c_void;

/// One arena for all threads, given back at the top: each arena of its own costs a thread's start a mapping of 64 MiB and
/// the process pages that stay. To be called before there are threads; what few allocations ours make do not contend.
pub fn frugal() {
    /// Free bytes at the heap's top that are kept. A set value also keeps glibc from raising its own thresholds, which
    /// would leave the logs' buffers in the heap.
    const KEPT: libc::c_int = 64 << 10;
    // SAFETY: plain calls that set numbers; a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Gives back what only the start needed: free pages of the heap, and the program's own pages, which come back one by one
/// from the page cache where they are needed. For a moment when a long rest begins.
pub fn settle() {
    // SAFETY: no preconditions.
    unsafe { libc::malloc_trim(0) };
    let Ok(exe) = std::fs::read_link("/proc/self/exe") else { return };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for line in maps.lines() {
        let Some((start, length)) = of_program(line, &exe.to_string_lossy()) else { continue };
        // SAFETY: a mapping of a file that nobody has written to, since it cannot be written to: the same bytes come back.
        unsafe { libc::madvise(std::ptr::without_provenance_mut::<c_void>(start), length, libc::MADV_DONTNEED) };
    }
}

/// Address and length of a line of /proc/self/maps that is the program's code, or its constants before it. What is
/// read-only but further on was written to when the program was relocated, and must stay.
fn of_program(line: &str, exe: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.nth(2)?;
    let pure = rights == "r-xp" || (rights == "r--p" && offset.bytes().all(|b| b == b'0'));
    if path != exe || !pure {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_written_to_is_given_back() {
        let of = |line| of_program(line, "/hpk-pause");
        assert_eq!(of("1000-3000 r--p 00000000 08:01 7 /hpk-pause"), Some((0x1000, 0x2000)));
        assert_eq!(of("3000-9000 r-xp 00002000 08:01 7                    /hpk-pause"), Some((0x3000, 0x6000)));
        for other in [
            "9000-a000 r--p 00008000 08:01 7 /hpk-pause",
            "a000-b000 rw-p 00009000 08:01 7 /hpk-pause",
            "b000-c000 rw-p 00000000 00:00 0 [heap]",
            "b000-c000 r-xp 00000000 00:00 0",
            "1000-3000 r-xp 00000000 08:01 9 /lib/libc.so.6",
            "nonsense",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_program_goes_on_after_it() {
        settle();
        assert_eq!(format!("{:?}", "still ".repeat(3).trim()), "\"still still still\"");
    }
}
