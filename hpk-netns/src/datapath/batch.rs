//! Datagrams of one size to one peer, gathered for one system call (UDP_SEGMENT). Pure.

use std::net::SocketAddr;

/// Most datagrams in one call (linux/udp.h UDP_MAX_SEGMENTS is 64 on kernels before 6.9).
const MAX_COUNT: usize = 64;
/// Most bytes in one call.
const MAX_BYTES: usize = 65_000;

/// Gathered datagrams.
#[derive(Debug)]
pub(crate) struct Batch {
    /// As long as what was gathered at most.
    buffer: Vec<u8>,
    used: usize,
    count: usize,
    /// Length of the first; only the last may be shorter.
    size: usize,
    closed: bool,
    to: Option<SocketAddr>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { buffer: Vec::new(), used: 0, count: 0, size: 0, closed: false, to: None }
    }

    /// Whether a datagram of `len` bytes to `to` can join; else it must be sent first.
    pub(crate) fn accepts(&self, to: SocketAddr, len: usize) -> bool {
        self.count == 0
            || (!self.closed
                && self.to == Some(to)
                && len <= self.size
                && self.count < MAX_COUNT
                && self.used + len <= MAX_BYTES)
    }

    /// Where the next datagram is to be written: at least `len` and 256 bytes long.
    pub(crate) fn space(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len.max(256);
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.buffer.get_mut(self.used..).unwrap_or_default()
    }

    /// Takes what was written into [`Self::space`].
    pub(crate) fn commit(&mut self, to: SocketAddr, len: usize) {
        if self.count == 0 {
            (self.size, self.to) = (len, Some(to));
        }
        self.used += len;
        self.count += 1;
        self.closed = len < self.size;
    }

    /// Bytes, size of each datagram (None: a single one) and where to; empties the batch.
    pub(crate) fn take(&mut self) -> Option<(&[u8], Option<u16>, SocketAddr)> {
        let to = self.to.take()?;
        let (used, count, size) = (self.used, self.count, self.size);
        (self.used, self.count, self.closed) = (0, 0, false);
        let size = if count > 1 { u16::try_from(size).ok() } else { None };
        Some((self.buffer.get(..used)?, size, to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sizes_join_and_a_short_one_is_the_last() {
        let a: SocketAddr = "10.0.0.1:1".parse().unwrap();
        let b: SocketAddr = "10.0.0.2:1".parse().unwrap();
        let mut batch = Batch::new();
        assert!(batch.take().is_none());
        for len in [1400, 1400, 600] {
            assert!(batch.accepts(a, len));
            assert!(batch.space(len).len() >= len);
            batch.commit(a, len);
        }
        assert!(!batch.accepts(a, 600), "after a short one");
        let (bytes, size, to) = batch.take().unwrap();
        assert_eq!((bytes.len(), size, to), (3400, Some(1400), a));
        batch.commit(a, 100);
        assert!(!batch.accepts(a, 101) && !batch.accepts(b, 100) && batch.accepts(a, 100));
        assert_eq!(batch.take().unwrap().1, None);
    }

    #[test]
    fn bounded_in_count_and_bytes() {
        let a: SocketAddr = "10.0.0.1:1".parse().unwrap();
        for (len, most) in [(100, 64), (1432, 45)] {
            let mut batch = Batch::new();
            let mut count = 0;
            while batch.accepts(a, len) {
                assert!(batch.space(len).len() >= len);
                batch.commit(a, len);
                count += 1;
            }
            assert_eq!(count, most);
        }
    }
}
