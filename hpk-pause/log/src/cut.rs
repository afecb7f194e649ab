//! Cuts a byte stream into CRI records. Pure: bytes and a time stamp in, records out.
//!
//! Rules (containerd's `redirectLogs`): a line becomes one F record; a line longer than
//! [`MAX_CONTENT`] becomes P records of that length and a last F; `\r\n` loses its `\r`; what is left without a
//! newline at the end of the stream is a P record.

use crate::records::Records;
use crate::stamp;
use hpk_api::cri_log::{MAX_CONTENT, Stream};
use memchr::memchr;
use std::ops::Range;

/// `<time> <stream> <tag> `: both stream names have six letters.
const PREFIX: usize = stamp::LENGTH + 10;
const TAG: usize = PREFIX - 2;

/// One stream's cutter. Between reads it holds only the unfinished line, at most [`MAX_CONTENT`] + 1 bytes.
#[derive(Debug)]
pub(crate) struct Cutter {
    prefix: [u8; PREFIX],
    pending: Vec<u8>,
}

impl Cutter {
    /// A cutter for one stream.
    pub(crate) fn new(stream: Stream) -> Self {
        let mut prefix = [b' '; PREFIX];
        prefix[stamp::LENGTH + 1..TAG - 1].copy_from_slice(stream.as_str().as_bytes());
        prefix[TAG] = b'F';
        Self { prefix, pending: Vec::new() }
    }

    /// Bytes of the unfinished line.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Cuts `input`, appending whole records to `out`, which is empty, and returns how much of it was used: all of it unless
    /// more would take `out` beyond `limit` bytes, in which case the rest is to be given again.
    pub(crate) fn feed(&mut self, input: &[u8], time: &[u8; stamp::LENGTH], out: &mut Records, limit: usize) -> usize {
        self.prefix[..stamp::LENGTH].copy_from_slice(time);
        let mut used = 0;
        while used < input.len() {
            if out.len() >= limit {
                return used;
            }
            let rest = &input[used..];
            let newline = memchr(b'\n', rest);
            // The common case: a line that ends here, straight from the input. Its beginning may have come before.
            if let Some(end) = newline
                && self.pending.len() + end <= MAX_CONTENT
            {
                if !out.is_empty() && out.len() + PREFIX + self.pending.len() + end + 1 > limit {
                    return used;
                }
                self.line(input, used..used + end, out);
                used += end + 1;
                continue;
            }
            let end = newline.unwrap_or(rest.len());
            let room = (MAX_CONTENT + 1).saturating_sub(self.pending.len());
            let taken = end.min(room);
            self.pending.extend_from_slice(&rest[..taken]);
            used += taken;
            if taken == end && newline.is_some() {
                used += 1;
                self.end_line(out);
            } else if self.pending.len() > MAX_CONTENT && !self.may_end_after_cr(&input[used..]) {
                self.part(out);
            }
        }
        if self.pending.is_empty() && self.pending.capacity() > 0 {
            self.pending = Vec::new();
        }
        used
    }

    /// The stream has ended: an unfinished line becomes a P record.
    pub(crate) fn finish(&mut self, time: &[u8; stamp::LENGTH], out: &mut Records) {
        self.prefix[..stamp::LENGTH].copy_from_slice(time);
        if self.pending.len() > MAX_CONTENT {
            self.part(out);
        }
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.record(b'P', &pending, out);
        }
    }

    /// A line no longer than the limit: what is pending and this part of the input, which a newline follows.
    fn line(&mut self, input: &[u8], mut content: Range<usize>, out: &mut Records) {
        out.copy(&self.prefix);
        if content.is_empty() && self.pending.last() == Some(&b'\r') {
            self.pending.pop();
        }
        out.copy(&self.pending);
        self.pending.clear();
        match input.get(content.end.wrapping_sub(1)) {
            Some(b'\r') if !content.is_empty() => {
                content.end -= 1;
                out.lend(input, content);
                out.copy(b"\n");
            }
            _ => out.lend(input, content.start..content.end + 1),
        }
    }

    /// The newline after `pending` was seen.
    fn end_line(&mut self, out: &mut Records) {
        let mut pending = std::mem::take(&mut self.pending);
        if pending.last() == Some(&b'\r') {
            pending.pop();
        }
        if let Some((part, rest)) = pending.split_at_checked(MAX_CONTENT)
            && !rest.is_empty()
        {
            self.record(b'P', part, out);
            self.record(b'F', rest, out);
        } else {
            self.record(b'F', &pending, out);
        }
        pending.clear();
        self.pending = pending;
    }

    /// One byte too many and it is a `\r`: whether it belongs to a `\r\n` is not known yet.
    fn may_end_after_cr(&self, rest: &[u8]) -> bool {
        self.pending.len() == MAX_CONTENT + 1
            && self.pending.last() == Some(&b'\r')
            && rest.first().is_none_or(|b| *b == b'\n')
    }

    /// Writes the first [`MAX_CONTENT`] bytes of `pending` as a P record.
    fn part(&mut self, out: &mut Records) {
        let pending = std::mem::take(&mut self.pending);
        let (part, rest) = pending.split_at(MAX_CONTENT.min(pending.len()));
        self.record(b'P', part, out);
        self.pending = rest.to_vec();
    }

    fn record(&mut self, tag: u8, content: &[u8], out: &mut Records) {
        self.prefix[TAG] = tag;
        out.copy(&self.prefix);
        out.copy(content);
        out.copy(b"\n");
        self.prefix[TAG] = b'F';
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIME: &[u8; stamp::LENGTH] = b"2026-11-23T20:00:00.123456789Z";

    /// The rules said plainly, for whole input.
    fn expected(input: &[u8]) -> Vec<(bool, Vec<u8>)> {
        let mut records = Vec::new();
        let mut push = |line: &[u8], ended: bool| {
            let line = if ended { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
            let parts: Vec<&[u8]> = if line.is_empty() { vec![line] } else { line.chunks(MAX_CONTENT).collect() };
            let last = parts.len() - 1;
            for (index, part) in parts.into_iter().enumerate() {
                records.push((index < last || !ended, part.to_vec()));
            }
        };
        let mut rest = input;
        while let Some(end) = memchr(b'\n', rest) {
            push(&rest[..end], true);
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            push(rest, false);
        }
        records
    }

    fn records(out: &[u8]) -> Vec<(bool, Vec<u8>)> {
        out.split_inclusive(|b| *b == b'\n')
            .map(|line| {
                let record = hpk_api::cri_log::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
                assert_eq!(record.time, TIME);
                assert_eq!(record.stream, Stream::Stderr);
                (record.partial, record.content.to_vec())
            })
            .collect()
    }

    fn cut(input: &[u8], sizes: &[usize], limit: usize) -> Vec<u8> {
        let mut cutter = Cutter::new(Stream::Stderr);
        let (mut all, mut out) = (Vec::new(), Records::default());
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = input;
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
            let (mut chunk, tail) = rest.split_at(size);
            while !chunk.is_empty() {
                out.clear();
                let used = cutter.feed(chunk, TIME, &mut out, limit);
                all.extend(out.to_vec(chunk));
                chunk = &chunk[used..];
            }
            assert!(cutter.pending() <= MAX_CONTENT + 1);
            rest = tail;
        }
        out.clear();
        cutter.finish(TIME, &mut out);
        all.extend(out.to_vec(&[]));
        all
    }

    fn byte() -> impl Strategy<Value = u8> {
        prop_oneof![8 => Just(b'x'), 2 => Just(b'\n'), 2 => Just(b'\r'), 1 => any::<u8>()]
    }

    /// Runs of bytes, some as long as the limit, so that the edges are met.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let run = prop_oneof![
            6 => proptest::collection::vec(byte(), 0..40),
            2 => (MAX_CONTENT - 2..MAX_CONTENT + 3).prop_map(|n| vec![b'y'; n]),
            1 => (2 * MAX_CONTENT - 1..2 * MAX_CONTENT + 2).prop_map(|n| vec![b'z'; n]),
        ];
        proptest::collection::vec(run, 0..8).prop_map(|runs| runs.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_records(input in stream(), sizes in proptest::collection::vec(1usize..20_000, 1..6), limit in 1usize..100_000) {
            prop_assert_eq!(records(&cut(&input, &sizes, limit)), expected(&input));
        }
    }

    #[test]
    fn edges() {
        let line = |n: usize, end: &str| [vec![b'a'; n], end.as_bytes().to_vec()].concat();
        for (input, expected) in [
            (line(MAX_CONTENT, "\n"), vec![(false, MAX_CONTENT)]),
            (line(MAX_CONTENT, "\r\n"), vec![(false, MAX_CONTENT)]),
            (line(MAX_CONTENT + 1, "\n"), vec![(true, MAX_CONTENT), (false, 1)]),
            (line(MAX_CONTENT, ""), vec![(true, MAX_CONTENT)]),
            (line(0, "\n"), vec![(false, 0)]),
            (line(3, ""), vec![(true, 3)]),
            (line(0, ""), vec![]),
        ] {
            for sizes in [vec![usize::MAX], vec![1], vec![4096]] {
                let got: Vec<_> =
                    records(&cut(&input, &sizes, usize::MAX)).into_iter().map(|(p, c)| (p, c.len())).collect();
                assert_eq!(got, expected);
            }
        }
    }
}
