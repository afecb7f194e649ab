//! The file that a reader is in: its lines, plain or compressed.

use super::BLOCK;
use flate2::read::MultiGzDecoder;
use memchr::memchr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::SystemTime;

/// A line that is no record of ours and longer than this is skipped in pieces.
const MAX_LINE: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Current {
    content: Content,
    /// Uncompressed bytes of the file that are done with.
    pub(super) offset: u64,
    /// [`Part::end`].
    pub(super) end: Option<u64>,
    /// Bytes read and not yet used.
    pub(super) buffer: Vec<u8>,
    pub(super) used: usize,
    pub(super) modified: SystemTime,
    pub(super) inode: u64,
    /// [`Part::counted`].
    pub(super) counted: bool,
    /// Inside a line too long to be a record.
    pub(super) skipping: bool,
}

enum Content {
    Plain(File),
    Gz(Box<MultiGzDecoder<File>>),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(_) => write!(f, "Plain"),
            Self::Gz(_) => write!(f, "Gz"),
        }
    }
}

impl Current {
    pub(super) fn new(file: File, gz: bool, skip: u64, end: Option<u64>) -> io::Result<Self> {
        let meta = file.metadata()?;
        let content = if gz {
            let mut decoder = MultiGzDecoder::new(file);
            io::copy(&mut (&mut decoder).take(skip), &mut io::sink())?;
            Content::Gz(Box::new(decoder))
        } else {
            Content::Plain(file)
        };
        Ok(Self {
            content,
            offset: skip,
            end,
            buffer: Vec::new(),
            used: 0,
            modified: meta.modified()?,
            inode: meta.ino(),
            counted: false,
            skipping: false,
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        matches!(self.content, Content::Plain(_))
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.is_some_and(|end| self.offset >= end)
    }

    pub(super) fn modified(&self) -> SystemTime {
        match &self.content {
            Content::Plain(file) => file.metadata().and_then(|m| m.modified()).unwrap_or(self.modified),
            Content::Gz(_) => self.modified,
        }
    }

    /// Makes sure that the buffer holds a whole line. False at the end of the file; the buffer then holds an
    /// unfinished line, if anything.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        loop {
            if memchr(b'\n', &self.buffer[self.used..]).is_some() {
                return Ok(true);
            }
            if self.buffer.len() - self.used > MAX_LINE {
                let length = (self.buffer.len() - self.used) as u64;
                self.advance(length);
                self.buffer.clear();
                self.used = 0;
                self.skipping = true;
            }
            let start = self.buffer.len();
            self.buffer.resize(start + BLOCK, 0);
            let count = match &mut self.content {
                Content::Plain(file) => {
                    file.read_at(&mut self.buffer[start..], self.offset.saturating_add((start - self.used) as u64))
                }
                Content::Gz(decoder) => decoder.read(&mut self.buffer[start..]),
            };
            self.buffer.truncate(start + *count.as_ref().unwrap_or(&0));
            if count? == 0 {
                return Ok(false);
            }
        }
    }

    /// So many bytes of the file are done with.
    pub(super) fn advance(&mut self, bytes: u64) {
        self.offset = self.offset.saturating_add(bytes);
    }

    /// An unfinished line is read again when it is whole: its writer may take it back (a full disk).
    pub(super) fn forget_torn(&mut self) {
        self.buffer = Vec::new();
        self.used = 0;
    }

    pub(super) fn compact(&mut self) {
        self.buffer.drain(..self.used);
        self.used = 0;
    }
}
