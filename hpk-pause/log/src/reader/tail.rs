//! Where the last lines of a log's file begin.

use super::BLOCK;
use flate2::read::MultiGzDecoder;
use hpk_api::cri_log::{self, Stream};
use memchr::memchr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Counts line ends of the stream asked for: a full record ends a line, and so does a last partial one.
fn ends_line(record: &[u8], stream: Option<Stream>, last: bool) -> bool {
    cri_log::parse(record).is_some_and(|r| (!r.partial || last) && stream.is_none_or(|s| s == r.stream))
}

/// How long a live file is without the record that is being written.
pub(super) fn whole_lines(file: &File) -> io::Result<u64> {
    let mut position = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    while position > 0 {
        let step = position.min(BLOCK as u64);
        position -= step;
        let block = &mut block[..usize::try_from(step).unwrap_or(BLOCK)];
        file.read_exact_at(block, position)?;
        if let Some(newline) = memchr::memrchr(b'\n', block) {
            return Ok(position + newline as u64 + 1);
        }
    }
    Ok(0)
}

/// Where the last `lines` lines of the first `size` bytes of a plain file begin. Reduces `lines` by those that these bytes
/// have. Only in the newest file can trailing partial records be a line of their own.
pub(super) fn tail_plain(
    file: &File,
    size: u64,
    lines: &mut u64,
    stream: Option<Stream>,
    newest: bool,
) -> io::Result<u64> {
    if *lines == 0 && newest {
        return Ok(size);
    }
    let mut last = newest;
    let mut position = size;
    let mut tail: Vec<u8> = Vec::new();
    loop {
        // `tail` begins with a line whose start is not known yet.
        let step = position.min(BLOCK as u64);
        position -= step;
        let mut block = vec![0; usize::try_from(step).unwrap_or(BLOCK)];
        file.read_exact_at(&mut block, position)?;
        block.extend_from_slice(&tail);
        let first = if position == 0 { Some(0) } else { memchr(b'\n', &block).map(|n| n + 1) };
        let Some(first) = first else {
            tail = block;
            continue;
        };
        let mut end = block.len();
        while end > first {
            let line_end = if block[end - 1] == b'\n' { end - 1 } else { end };
            let start = memchr::memrchr(b'\n', &block[first..line_end]).map_or(first, |n| first + n + 1);
            if ends_line(&block[start..line_end], stream, last) {
                if *lines == 0 {
                    return Ok(position + end as u64);
                }
                *lines -= 1;
            }
            last = false;
            end = start;
        }
        if position == 0 {
            return Ok(0);
        }
        block.truncate(first);
        tail = block;
    }
}

/// The same for a compressed file, which can only be read forward: once to count, once more to find the place.
pub(super) fn tail_gz(file: &File, lines: &mut u64, stream: Option<Stream>) -> io::Result<u64> {
    let total = scan_gz(file, stream, |_| false)?.0;
    if total <= *lines {
        *lines -= total;
        return Ok(0);
    }
    let unwanted = total - std::mem::take(lines);
    Ok(scan_gz(file, stream, |seen| seen == unwanted)?.1)
}

/// Goes through a compressed file until `stop`, asked with the number of line ends seen. Returns that number and
/// the bytes passed.
fn scan_gz(file: &File, stream: Option<Stream>, stop: impl Fn(u64) -> bool) -> io::Result<(u64, u64)> {
    let mut clone = file.try_clone()?;
    io::Seek::rewind(&mut clone)?;
    let mut input = io::BufReader::with_capacity(BLOCK, MultiGzDecoder::new(clone));
    let (mut seen, mut passed, mut line) = (0, 0, Vec::new());
    while !stop(seen) {
        line.clear();
        let length = io::BufRead::read_until(&mut input, b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        passed += length as u64;
        seen += u64::from(ends_line(line.strip_suffix(b"\n").unwrap_or(&line), stream, false));
    }
    io::Seek::rewind(&mut file.try_clone()?)?;
    Ok((seen, passed))
}
