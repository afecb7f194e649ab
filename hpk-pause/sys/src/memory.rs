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

/// Gives back what only the start needed: free pages of the heap, the stack's below here, and the program's own pages,
/// which come back one by one from the page cache where they are needed. For a moment when a long rest begins.
pub fn settle() {
    settle_then(|| ());
}

/// [`settle`] and then `wait`, with little in between: a page of the program that is needed once more comes back with its
/// neighbours, 64 KiB of them, or as many as the kernel keeps as one, and stays while this waits. The thread must have
/// been made by the system or by the standard library, whose stacks end in pages that nobody may touch.
#[inline(always)]
pub fn settle_then<T>(wait: impl FnOnce() -> T) -> T {
    for (start, length) in unneeded().into_iter().flatten() {
        // SAFETY: a mapping of a file that nobody has written to, since it cannot be written to: the same bytes come back.
        // Or a part of this thread's stack that no frame uses.
        unsafe { libc::madvise(std::ptr::without_provenance_mut::<c_void>(start), length, libc::MADV_DONTNEED) };
    }
    wait()
}

/// Address and length of what this process can do without, after the heap was trimmed.
#[inline(never)]
fn unneeded() -> [Option<(usize, usize)>; 4] {
    let mut parts = [None; 4];
    let here = 0_u8;
    if let (Ok(exe), Ok(maps)) = (std::fs::read_link("/proc/self/exe"), std::fs::read_to_string("/proc/self/maps")) {
        let exe = exe.to_string_lossy();
        let found =
            maps.lines().filter_map(|line| of_program(line, &exe).or_else(|| of_stack(line, (&raw const here).addr())));
        for (place, part) in parts.iter_mut().zip(found) {
            *place = Some(part);
        }
    }
    // SAFETY: no preconditions.
    unsafe { libc::malloc_trim(0) };
    parts
}

/// Address and length of what lies below a frame at `here`, if the line is of the stack's mapping, but for what calls
/// from that frame may need.
fn of_stack(line: &str, here: usize) -> Option<(usize, usize)> {
    const NEAR: usize = 8 << 10;
    const PAGE: usize = 4 << 10;
    let (start, end) = range(line.split_ascii_whitespace().next()?)?;
    let length = here.checked_sub(start)?.checked_sub(NEAR)? / PAGE * PAGE;
    (here < end && length > 0).then_some((start, length))
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
    let (start, end) = self::range(range)?;
    Some((start, end.checked_sub(start)?))
}

/// `1000-3000`, as /proc/self/maps has it.
fn range(text: &str) -> Option<(usize, usize)> {
    let (start, end) = text.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
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
    fn of_a_stack_only_what_lies_well_below_is_given_back() {
        let line = "10000-30000 rw-p 00000000 00:00 0 [stack]";
        assert_eq!(of_stack(line, 0x20_123), Some((0x10000, 0xe000)));
        for other in [0xffff, 0x10010, 0x12fff, 0x30000, 0x40000] {
            assert_eq!(of_stack(line, other), None, "{other:#x}");
        }
    }

    #[test]
    fn a_program_goes_on_after_it() {
        let (before, deep) = (String::from("still "), [7_u8; 10_000]);
        assert_eq!(settle_then(|| std::hint::black_box(deep).iter().map(|b| usize::from(*b)).sum::<usize>()), 70_000);
        assert_eq!(before, "still ");
        settle();
        assert_eq!(format!("{:?}", "still ".repeat(3).trim()), "\"still still still\"");
    }
}
