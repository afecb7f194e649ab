//! What ranks say on their standard output, which srun brings to the pod's first node: their commands' output and news of
//! themselves. Pure.
//!
//! ```text
//! 12 oa whole line of standard output, or its end
//! 12 Oa part of a line, the rest follows          e, E: standard error          n, N: StepNews as JSON
//! ```
//! srun carries a line of up to 1024 bytes in one piece and longer ones not, so records are shorter, and a line of any length
//! comes out whole: it is put together for each rank.

use hpk_api::step::StepNews;
use std::collections::HashMap;

/// Bytes of text in one record; with what stands before it, it stays below SLURM_IO_MAX_MSG_LEN.
const TEXT: usize = 1000;

/// A line that is longer is broken in two.
const LONGEST_LINE: usize = 256 << 10;

/// Which of a rank's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
    News,
}

impl Stream {
    fn of(letter: u8) -> Option<Self> {
        Some(match letter {
            b'o' => Self::Stdout,
            b'e' => Self::Stderr,
            b'n' => Self::News,
            _ => return None,
        })
    }

    fn letter(self, more: bool) -> u8 {
        let letter = match self {
            Self::Stdout => b'o',
            Self::Stderr => b'e',
            Self::News => b'n',
        };
        if more { letter.to_ascii_uppercase() } else { letter }
    }
}

/// Appends the records of some output, as it was read.
pub(crate) fn write(rank: u32, stream: Stream, text: &[u8], out: &mut Vec<u8>) {
    let mut record = |text: &[u8], more: bool| {
        out.extend_from_slice(rank.to_string().as_bytes());
        out.push(b' ');
        out.push(stream.letter(more));
        out.extend_from_slice(text);
        out.push(b'\n');
    };
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let (line, whole) = line.strip_suffix(b"\n").map_or((line, false), |line| (line, true));
        let mut parts = line.chunks(TEXT).peekable();
        while let Some(part) = parts.next() {
            record(part, !whole || parts.peek().is_some());
        }
        if whole && line.is_empty() {
            record(b"", false);
        }
    }
}

/// Appends the record of news.
pub(crate) fn write_news(rank: u32, news: &StepNews, out: &mut Vec<u8>) {
    let mut text = serde_json::to_vec(news).unwrap_or_default();
    text.push(b'\n');
    write(rank, Stream::News, &text, out);
}

/// What came of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// A line of a rank's standard output, with its end.
    Stdout(u32, Vec<u8>),
    /// A line of a rank's standard error, with its end.
    Stderr(u32, Vec<u8>),
    /// A line of somebody else's, with its end: Slurm's.
    Other(Vec<u8>),
    News(StepNews),
}

/// Puts records together.
#[derive(Debug, Default)]
pub(crate) struct Records {
    begun: HashMap<(u32, Stream), Vec<u8>>,
}

impl Records {
    /// Takes one line, without its end. What is no record is somebody else's word.
    pub(crate) fn take(&mut self, line: &[u8]) -> Option<Heard> {
        let Some((rank, stream, more, text)) = parse(line) else {
            return Some(Heard::Other([line, b"\n"].concat()));
        };
        let begun = self.begun.entry((rank, stream)).or_default();
        begun.extend_from_slice(text);
        if more && begun.len() < LONGEST_LINE {
            return None;
        }
        let line = std::mem::take(begun);
        if line.is_empty() || begun.capacity() == 0 {
            self.begun.remove(&(rank, stream));
        }
        whole(rank, stream, line)
    }

    /// Lines that never came to their end.
    pub(crate) fn rest(&mut self) -> impl Iterator<Item = Heard> {
        let begun = self.begun.drain().filter(|(_, line)| !line.is_empty());
        begun.filter_map(|((rank, stream), line)| whole(rank, stream, line))
    }
}

fn whole(rank: u32, stream: Stream, mut line: Vec<u8>) -> Option<Heard> {
    if stream == Stream::News {
        return serde_json::from_slice(&line).ok().map(Heard::News);
    }
    line.push(b'\n');
    Some(if stream == Stream::Stdout { Heard::Stdout(rank, line) } else { Heard::Stderr(rank, line) })
}

fn parse(line: &[u8]) -> Option<(u32, Stream, bool, &[u8])> {
    let space = line.iter().take(11).position(|&byte| byte == b' ')?;
    let rank = std::str::from_utf8(line.get(..space)?).ok()?.parse().ok()?;
    let letter = *line.get(space + 1)?;
    Some((rank, Stream::of(letter.to_ascii_lowercase())?, letter.is_ascii_uppercase(), line.get(space + 2..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::step::Rank;
    use proptest::prelude::*;

    fn heard(records: &mut Records, bytes: &[u8]) -> Vec<Heard> {
        bytes.split_inclusive(|&b| b == b'\n').filter_map(|l| records.take(l.strip_suffix(b"\n").unwrap())).collect()
    }

    #[test]
    fn lines_of_two_ranks_are_not_mixed() {
        let mut out = Vec::new();
        write(0, Stream::Stdout, b"one ", &mut out);
        write(1, Stream::Stdout, b"other\n", &mut out);
        write(0, Stream::Stderr, b"\n", &mut out);
        write(0, Stream::Stdout, b"line\nlast", &mut out);
        let mut records = Records::default();
        let lines = heard(&mut records, &out);
        let want = [
            Heard::Stdout(1, b"other\n".into()),
            Heard::Stderr(0, b"\n".into()),
            Heard::Stdout(0, b"one line\n".into()),
        ];
        assert_eq!(lines, want);
        assert_eq!(records.rest().collect::<Vec<_>>(), [Heard::Stdout(0, b"last\n".into())]);
    }

    #[test]
    fn news_of_any_length_and_words_of_others() {
        let of = Rank { rank: 3, node: "c1".into() };
        let news = StepNews::Failed { of, message: "\"long\" ".repeat(1000) };
        let mut out = b"slurmstepd: error: x\n".to_vec();
        write_news(3, &news, &mut out);
        let lines = heard(&mut Records::default(), &out);
        assert_eq!(lines, [Heard::Other(b"slurmstepd: error: x\n".into()), Heard::News(news)]);
    }

    #[test]
    fn a_line_without_end_is_broken() {
        let mut out = Vec::new();
        write(0, Stream::Stdout, &vec![b'x'; LONGEST_LINE + 5], &mut out);
        let mut records = Records::default();
        let lines = heard(&mut records, &out);
        assert!(matches!(&lines[..], [Heard::Stdout(0, line)] if line.len() > LONGEST_LINE));
    }

    proptest! {
        /// However the output was cut when it was read, and whatever the other rank says meanwhile: each comes out as it was,
        /// and no record is longer than srun carries.
        #[test]
        fn what_goes_in_comes_out(
            parts in proptest::collection::vec((0..2u32, "[ab\n]{0,1500}"), 0..12),
        ) {
            let mut said = [String::new(), String::new()];
            let mut out = Vec::new();
            for (rank, text) in &parts {
                said[*rank as usize].push_str(text);
                write(*rank, Stream::Stdout, text.as_bytes(), &mut out);
            }
            prop_assert!(out.split_inclusive(|&b| b == b'\n').all(|record| record.len() <= 1024));
            for (rank, said) in (0..2u32).zip(&said) {
                let mut records = Records::default();
                let own: Vec<u8> = out.split_inclusive(|&b| b == b'\n').filter(|r| parse(r).unwrap().0 == rank).flatten().copied().collect();
                let mut lines = heard(&mut records, &own);
                lines.extend(records.rest());
                let got: Vec<u8> = lines.into_iter().flat_map(|l| match l { Heard::Stdout(_, l) => l, other => panic!("{other:?}") }).collect();
                let mut want = said.clone().into_bytes();
                if !want.is_empty() && !want.ends_with(b"\n") { want.push(b'\n'); }
                prop_assert_eq!(got, want);
            }
        }

        #[test]
        fn any_line_is_taken(line in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Records::default().take(&line);
        }
    }
}
