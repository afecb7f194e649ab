//! How this process uses its heap.

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
