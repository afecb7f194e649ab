//! Records that wait for one write: short ones copied together, the content of long ones left where it was read.
//!
//! Copying is cheaper than one more segment for a short line and dearer for a long one, so that the bytes of a long line
//! are copied by the kernel alone.

use std::io::IoSlice;
use std::ops::Range;

/// From this length on content is not copied, bytes.
const LONG: usize = 2048;

/// Whole records. Ranges of the input mean the bytes that were given to [`crate::cut::Cutter::feed`] since the last clear.
#[derive(Debug, Default)]
pub(crate) struct Records {
    own: Vec<u8>,
    pieces: Vec<Piece>,
    /// Bytes of `own` that `pieces` name; the rest comes last.
    named: usize,
    /// Bytes of the input that `pieces` name.
    lent: usize,
}

#[derive(Clone, Debug)]
enum Piece {
    Own(Range<usize>),
    Input(Range<usize>),
}

impl Records {
    pub(crate) fn clear(&mut self) {
        self.own.clear();
        self.pieces.clear();
        (self.named, self.lent) = (0, 0);
    }

    pub(crate) fn len(&self) -> usize {
        self.own.len() + self.lent
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a copy.
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.own.extend_from_slice(bytes);
    }

    /// Appends a part of the input.
    pub(crate) fn lend(&mut self, input: &[u8], range: Range<usize>) {
        if range.len() < LONG {
            return self.copy(&input[range]);
        }
        if self.named < self.own.len() {
            self.pieces.push(Piece::Own(self.named..self.own.len()));
            self.named = self.own.len();
        }
        self.lent += range.len();
        self.pieces.push(Piece::Input(range));
    }

    /// For one write. `input`: what the records were cut from.
    pub(crate) fn slices<'a>(&'a self, input: &'a [u8]) -> Vec<IoSlice<'a>> {
        let mut slices = Vec::with_capacity(self.pieces.len() + 1);
        slices.extend(self.pieces.iter().cloned().map(|piece| match piece {
            Piece::Own(range) => IoSlice::new(&self.own[range]),
            Piece::Input(range) => IoSlice::new(&input[range]),
        }));
        if self.named < self.own.len() {
            slices.push(IoSlice::new(&self.own[self.named..]));
        }
        slices
    }

    /// All of it, to be kept longer than the input.
    pub(crate) fn to_vec(&self, input: &[u8]) -> Vec<u8> {
        self.slices(input).iter().flat_map(|slice| slice.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_parts_stay_where_they_are_and_all_keep_their_order() {
        let mut input = vec![b'a'; LONG];
        input.extend(b"short");
        let mut records = Records::default();
        records.copy(b"1 ");
        records.lend(&input, LONG..LONG + 5);
        records.copy(b"2 ");
        records.lend(&input, 0..LONG);
        records.lend(&input, 0..LONG);
        records.copy(b"3");
        assert_eq!(records.to_vec(&input), [b"1 short2 ", &input[..LONG], &input[..LONG], b"3"].concat());
        assert_eq!((records.len(), records.own.len(), records.slices(&input).len()), (10 + 2 * LONG, 10, 4));
        records.clear();
        assert!(records.is_empty() && records.slices(&input).is_empty());
    }
}
