//! Reading a log as a client sees it: across rotated and compressed files, from a point in time or the last lines.
//!
//! Synchronous and without a thread of its own. A reader of a live log is told by a [`crate::Follower`] when to go
//! on; it holds the file it is in open, so a rotation loses nothing. (Upstream's kubelet reads the live file only,
//! so that `--tail` and `--since` forget what was rotated.)
//!
//! Files that were compressed or pruned while a follower was behind are found again by their modification times.

mod current;
mod files;
mod tail;

use crate::last::Last;
use crate::rotate::{self, Rotated};
use current::Current;
use files::{inode_of, open_file, open_rotated};
use hpk_api::control::{LogOptions, LogPosition};
use hpk_api::cri_log::{self, Stream};
use jiff::Timestamp;
use memchr::memchr;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tail::{tail_gz, tail_plain, whole_lines};

const BLOCK: usize = 64 << 10;
/// [`LogPosition::offset`] of a file that has been read to its end.
const DONE: u64 = u64::MAX;

/// Which records, and how to show them: [`LogOptions`] without the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Last n lines (whole lines, however many records they have).
    pub tail_lines: Option<u64>,
    /// Only records at or after this.
    pub since: Option<Timestamp>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Prefix each line with its time.
    pub timestamps: bool,
    /// Only this stream.
    pub stream: Option<Stream>,
    /// End where the log ended when it was opened: its writer may be faster than its reader for ever.
    pub snapshot: bool,
}

impl From<&LogOptions> for ReadOptions {
    fn from(options: &LogOptions) -> Self {
        Self {
            tail_lines: options.tail_lines,
            since: options.since,
            limit_bytes: options.limit_bytes,
            timestamps: options.timestamps,
            stream: options.stream,
            snapshot: !options.follow,
        }
    }
}

/// A log cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("failed to read log {path}: {source}")]
pub struct ReadError {
    /// File or folder.
    pub path: PathBuf,
    /// The system's word.
    pub source: io::Error,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadStatus {
    /// There may be more at once.
    More,
    /// Everything written so far has been read.
    CaughtUp,
    /// limit_bytes is reached.
    LimitReached,
}

/// Reads one instance's log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    restart_count: u32,
    options: ReadOptions,
    /// `since` in the form of the log's own time stamps, for comparison as text.
    since_text: Option<String>,
    queue: VecDeque<Part>,
    current: Option<Current>,
    /// What is newer comes after the queue.
    last: Last,
    at_line_start: bool,
    remaining: u64,
}

/// A file to be read, from a point on.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    gz: bool,
    /// Uncompressed bytes to skip.
    skip: u64,
    /// Already open (the live file, so that a rotation cannot take it away).
    file: Option<File>,
    /// Uncompressed bytes after which nothing more is shown.
    end: Option<u64>,
    /// [`LogReader::last`] has it or a newer one already.
    counted: bool,
}

impl LogReader {
    /// Finds where to begin. A log without any file is empty, not an error: its writer may be about to make it.
    ///
    /// # Errors
    /// When the folder or a file cannot be read.
    pub fn open(dir: &Path, restart_count: u32, options: ReadOptions) -> Result<Self, ReadError> {
        let mut reader = Self::new(dir, restart_count, options);
        reader.plan().map_err(|source| ReadError { path: reader.live_path(), source })?;
        Ok(reader)
    }

    /// Goes on from where another reader with the same options was.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn resume(dir: &Path, options: ReadOptions, position: &LogPosition) -> Result<Self, ReadError> {
        let mut reader = Self::new(dir, position.restart_count, options);
        reader.at_line_start = position.at_line_start;
        reader.remaining = position.remaining.unwrap_or(u64::MAX);
        reader.plan_from(position).map_err(|source| ReadError { path: reader.live_path(), source })?;
        Ok(reader)
    }

    fn new(dir: &Path, restart_count: u32, options: ReadOptions) -> Self {
        Self {
            dir: dir.to_owned(),
            restart_count,
            since_text: options.since.map(|t| format!("{t:.9}")),
            remaining: options.limit_bytes.unwrap_or(u64::MAX),
            options,
            queue: VecDeque::new(),
            current: None,
            last: Last::NONE,
            at_line_start: true,
        }
    }

    /// Where the reader is: after what it has read so far.
    ///
    /// # Errors
    /// When the next file cannot be looked at.
    pub fn position(&self) -> Result<LogPosition, ReadError> {
        let (inode, modified, offset) = match (&self.current, self.queue.front()) {
            (Some(current), _) => (current.inode, current.modified(), current.offset),
            (None, Some(part)) => {
                let meta = match &part.file {
                    Some(file) => file.metadata(),
                    None => std::fs::metadata(&part.path),
                };
                let seen = meta.and_then(|meta| Ok((meta.ino(), meta.modified()?)));
                let (inode, modified) = seen.map_err(|source| ReadError { path: part.path.clone(), source })?;
                (inode, modified, part.skip)
            }
            // That file is done with.
            (None, None) => (self.last.inode, self.last.modified, DONE),
        };
        let since_epoch = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(LogPosition {
            restart_count: self.restart_count,
            inode,
            modified_nanos: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            offset,
            at_line_start: self.at_line_start,
            remaining: self.options.limit_bytes.map(|_| self.remaining),
        })
    }

    /// Appends client bytes to `out`, about 64 KiB at most.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&mut self, out: &mut Vec<u8>) -> Result<ReadStatus, ReadError> {
        self.read_inner(out).map_err(|source| ReadError { path: self.live_path(), source })
    }

    fn live_path(&self) -> PathBuf {
        self.dir.join(rotate::live_name(self.restart_count))
    }

    /// Fills the queue: the files that hold what is asked for, oldest first, the live one last.
    fn plan(&mut self) -> io::Result<()> {
        let (live, rotated) = self.snapshot()?;
        self.last = Last::of(&rotated).unwrap_or(self.last);
        let mut parts: VecDeque<Part> = VecDeque::new();
        let mut wanted = self.options.tail_lines;
        let mut newest = true;
        if let Some(file) = live {
            // Looked at once: between two looks its writer adds lines, which would be more than the last ones asked for.
            let size = whole_lines(&file)?;
            let skip = match &mut wanted {
                Some(lines) => tail_plain(&file, size, lines, self.options.stream, true)?,
                None => 0,
            };
            newest = false;
            let end = self.options.snapshot.then_some(size);
            parts.push_front(Part { path: self.live_path(), gz: false, skip, file: Some(file), end, counted: false });
        }
        let since = self.options.since.map(SystemTime::from);
        for entry in rotated.into_iter().rev() {
            // A line can begin in the file before only if this one is wanted from its start.
            let enough =
                wanted == Some(0) && (self.options.tail_lines == Some(0) || parts.front().is_some_and(|p| p.skip > 0));
            // Its last record is older than what is asked for, and so is everything before.
            if enough || since.is_some_and(|since| entry.modified < since) {
                break;
            }
            let Some((file, gz)) = open_rotated(&entry.path, entry.gz)? else { continue };
            let skip = match &mut wanted {
                Some(lines) if gz => tail_gz(&file, lines, self.options.stream)?,
                Some(lines) => tail_plain(&file, file.metadata()?.len(), lines, self.options.stream, newest)?,
                None => 0,
            };
            newest = false;
            // Only the live file is kept open: a client of a long history holds few descriptors.
            parts.push_front(Part { path: entry.path, gz: entry.gz, skip, file: None, end: None, counted: true });
        }
        self.queue = parts;
        Ok(())
    }

    /// Fills the queue from a position on.
    fn plan_from(&mut self, position: &LogPosition) -> io::Result<()> {
        let (live, rotated) = self.snapshot()?;
        let live = live.map(|file| file.metadata().map(|meta| (file, meta.ino()))).transpose()?;
        let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(position.modified_nanos);
        let in_live = live.as_ref().is_some_and(|(_, inode)| *inode == position.inode);
        let first = if in_live {
            None
        } else {
            // The inode of a file that was compressed and removed may be another file's now: a compressed one is itself only
            // with the same time.
            let is_it = |entry: &Rotated| entry.inode == position.inode && (!entry.gz || entry.modified == modified);
            let same = rotated.iter().position(is_it);
            // Compressed since, which keeps the time of its last record.
            same.or_else(|| rotated.iter().position(|entry| entry.gz && entry.modified >= modified))
        };
        let done = |found: bool| if found { position.offset } else { 0 };
        self.last = Last::of(&rotated).unwrap_or(self.last);
        for (index, entry) in rotated.into_iter().enumerate().skip(first.unwrap_or(usize::MAX)) {
            let skip = done(Some(index) == first);
            if skip == DONE {
                continue;
            }
            self.queue.push_back(Part { path: entry.path, gz: entry.gz, skip, file: None, end: None, counted: true });
        }
        if let Some((file, _)) = live {
            let end = if self.options.snapshot { Some(whole_lines(&file)?) } else { None };
            let (path, skip) = (self.live_path(), done(in_live));
            self.queue.push_back(Part { path, gz: false, skip, file: Some(file), end, counted: false });
        }
        Ok(())
    }

    /// The live file, open, and the rotated ones that belong before it, seen in one consistent moment.
    fn snapshot(&self) -> io::Result<(Option<File>, Vec<Rotated>)> {
        let live_path = self.live_path();
        for _ in 0..16 {
            let live = match open_file(&live_path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let rotated = rotate::list_twice(&self.dir, self.restart_count)?;
            let opened = live.as_ref().map(File::metadata).transpose()?.map(|m| m.ino());
            if inode_of(&live_path) == opened {
                return Ok((live, rotated));
            }
            // Rotated between our two looks.
        }
        Err(io::Error::other("the log is rotated faster than it can be listed"))
    }

    fn read_inner(&mut self, out: &mut Vec<u8>) -> io::Result<ReadStatus> {
        if self.remaining == 0 {
            return Ok(ReadStatus::LimitReached);
        }
        let live_path = self.live_path();
        let mut looked_again = false;
        loop {
            let Some(current) = &mut self.current else {
                if self.next_part()? {
                    continue;
                }
                return Ok(ReadStatus::CaughtUp);
            };
            if current.is_over() {
                return Ok(ReadStatus::CaughtUp);
            }
            if current.fill()? {
                let limit_reached = self.emit(out);
                return Ok(if limit_reached { ReadStatus::LimitReached } else { ReadStatus::More });
            }
            // At its end. The live file may grow, all others are done with.
            let live = self.queue.is_empty() && current.is_plain();
            if live && inode_of(&live_path) == Some(current.inode) {
                current.forget_torn();
                return Ok(ReadStatus::CaughtUp);
            }
            if live && !looked_again {
                // It has been rotated; its last records may have come between our read and that look.
                looked_again = true;
                continue;
            }
            looked_again = false;
            if !current.counted {
                self.last = self.last.then(current.inode, current.modified());
            }
            self.emit_torn(out);
            self.current = None;
        }
    }

    /// Queues what is newer than the last file.
    fn plan_after_last(&mut self) -> io::Result<()> {
        let (live, rotated) = self.snapshot()?;
        for entry in self.last.successors(rotated) {
            let Rotated { path, gz, .. } = entry;
            self.queue.push_back(Part { path, gz, skip: 0, file: None, end: None, counted: false });
        }
        if let Some(file) = live
            && let meta = file.metadata()?
            && !self.last.is(meta.ino(), meta.modified()?)
        {
            let path = self.live_path();
            self.queue.push_back(Part { path, gz: false, skip: 0, file: Some(file), end: None, counted: false });
        }
        Ok(())
    }

    /// Opens the next file; false when there is none.
    fn next_part(&mut self) -> io::Result<bool> {
        if self.queue.is_empty() && !self.options.snapshot {
            self.plan_after_last()?;
        }
        while let Some(part) = self.queue.pop_front() {
            let (file, gz) = match part.file {
                Some(file) => (file, part.gz),
                // Pruned meanwhile: what is lost is lost.
                None => match open_rotated(&part.path, part.gz)? {
                    Some(opened) => opened,
                    None => continue,
                },
            };
            let mut current = Current::new(file, gz, part.skip, part.end)?;
            current.counted = part.counted;
            self.current = Some(current);
            return Ok(true);
        }
        Ok(false)
    }

    /// Shows the whole lines of the buffer; true when the limit is reached.
    fn emit(&mut self, out: &mut Vec<u8>) -> bool {
        let Some(mut current) = self.current.take() else { return false };
        while !current.is_over()
            && let Some(length) = memchr(b'\n', &current.buffer[current.used..])
        {
            let start = current.used;
            current.used += length + 1;
            current.advance(length as u64 + 1);
            if std::mem::take(&mut current.skipping) {
                continue;
            }
            if self.show(&current.buffer[start..start + length], out) {
                self.current = Some(current);
                return true;
            }
        }
        current.compact();
        self.current = Some(current);
        false
    }

    /// A rotated file that ends without a newline was torn (its node died): show what there is.
    fn emit_torn(&mut self, out: &mut Vec<u8>) {
        if let Some(current) = self.current.take()
            && current.used < current.buffer.len()
            && !current.skipping
        {
            self.show(&current.buffer[current.used..], out);
        }
    }

    /// Shows one record; true when the limit is reached.
    fn show(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(record) = cri_log::parse(line) else { return false };
        if self.options.stream.is_some_and(|stream| stream != record.stream) || self.is_before(record.time) {
            return false;
        }
        let before = out.len();
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(record.time);
            out.push(b' ');
        }
        out.extend_from_slice(record.content);
        if !record.partial {
            out.push(b'\n');
        }
        self.at_line_start = !record.partial;
        let shown = (out.len() - before) as u64;
        if shown >= self.remaining {
            out.truncate(before + usize::try_from(self.remaining).unwrap_or(usize::MAX));
            self.remaining = 0;
            return true;
        }
        self.remaining -= shown;
        false
    }

    fn is_before(&self, time: &[u8]) -> bool {
        let (Some(since), Some(text)) = (self.options.since, &self.since_text) else { return false };
        if time.len() == text.len() && time.last() == Some(&b'Z') {
            return time < text.as_bytes();
        }
        std::str::from_utf8(time).ok().and_then(|t| t.parse::<Timestamp>().ok()).is_some_and(|t| t < since)
    }
}

/// The end of a log as a termination message: its last 80 lines, of these the last 2048 bytes
/// (FallbackToLogsOnError).
///
/// # Errors
/// When the log cannot be read.
pub fn tail_for_termination_message(dir: &Path, restart_count: u32) -> Result<Vec<u8>, ReadError> {
    const LINES: u64 = 80;
    const BYTES: usize = 2048;
    let mut reader =
        LogReader::open(dir, restart_count, ReadOptions { tail_lines: Some(LINES), ..ReadOptions::default() })?;
    let mut text = Vec::new();
    loop {
        let status = reader.read(&mut text)?;
        let excess = text.len().saturating_sub(BYTES);
        text.drain(..excess);
        if status != ReadStatus::More {
            return Ok(text);
        }
    }
}
