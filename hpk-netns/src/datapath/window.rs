//! Which numbers of messages came with a key.

const WORDS: usize = 32;

/// Which numbers came, of the last [`Window::SPAN`] (RFC 6479): none is taken twice, and they may overtake each other.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// One more than the highest that came.
    next: u64,
    /// A bit for each number, the words in a ring.
    seen: [u64; WORDS],
}

impl Window {
    /// A word less than the ring has: it is cleared while others are in use.
    pub(super) const SPAN: u64 = 64 * (WORDS as u64 - 1);

    fn place(number: u64) -> (usize, u64) {
        let word = usize::try_from(number / 64 % WORDS as u64).unwrap_or(0);
        (word, 1 << (number % 64))
    }

    pub(super) fn is_new(&self, number: u64) -> bool {
        let (word, bit) = Self::place(number);
        number < u64::MAX
            && (number >= self.next
                || (self.next - number <= Self::SPAN && self.seen.get(word).is_some_and(|w| w & bit == 0)))
    }

    pub(super) fn mark(&mut self, number: u64) {
        if number >= self.next {
            // Words between the last one in use and this one are of numbers long gone.
            let (last, this) = (self.next.saturating_sub(1) / 64, number / 64);
            for word in (last + 1..=this).take(WORDS) {
                if let Some(w) = self.seen.get_mut(Self::place(word * 64).0) {
                    *w = 0;
                }
            }
            self.next = number + 1;
        }
        let (word, bit) = Self::place(number);
        if let Some(w) = self.seen.get_mut(word) {
            *w |= bit;
        }
    }
}
