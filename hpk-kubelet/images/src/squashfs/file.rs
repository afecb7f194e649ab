//! A file's bytes: whole blocks, and a tail in a block that it shares with other files.

use super::Squashfs;
use super::block::{Result, SquashError};
use super::inode::Content;
use std::io::{self, Read};
use std::rc::Rc;

/// Of a file: all of it is in blocks of its own.
const NO_FRAGMENT: u32 = u32::MAX;

/// [`Squashfs::read`].
pub(crate) struct FileReader<'s, 'a> {
    squashfs: &'s mut Squashfs<'a>,
    fault: Option<SquashError>,
    /// Where the next block is.
    at: u64,
    /// Bytes of the file that are not yet in `block`.
    left: u64,
    /// Blocks that are still to come.
    blocks: u64,
    sizes: (u64, usize),
    /// Fragment and offset in it.
    tail: (u32, u32),
    block: Rc<Vec<u8>>,
    used: usize,
    end: usize,
}

impl<'s, 'a> FileReader<'s, 'a> {
    pub(super) fn new(squashfs: &'s mut Squashfs<'a>, content: &Content) -> Self {
        let block_size = u64::from(squashfs.block_size);
        let blocks = match content.fragment {
            NO_FRAGMENT => content.size.div_ceil(block_size),
            _ => content.size / block_size,
        };
        Self {
            at: content.start,
            left: content.size,
            blocks,
            sizes: content.sizes,
            tail: (content.fragment, content.fragment_offset),
            block: Rc::new(Vec::new()),
            used: 0,
            end: 0,
            fault: None,
            squashfs,
        }
    }

    /// Why reading failed.
    pub(crate) fn fault(self) -> Option<SquashError> {
        self.fault
    }

    fn refill(&mut self) -> Result<()> {
        let block_size = self.squashfs.block_size;
        if self.blocks == 0 {
            let tail = self.squashfs.fragment(self.tail.0)?;
            let start = self.tail.1 as usize;
            let end = start.saturating_add(usize::try_from(self.left).unwrap_or(usize::MAX));
            if end > tail.len() {
                return Err(SquashError::Damaged("a file's end is missing"));
            }
            (self.block, self.used, self.end, self.left) = (tail, start, end, 0);
            return Ok(());
        }
        let mut cursor = self.squashfs.inodes.cursor_at(self.sizes);
        let mut bytes = [0; 4];
        cursor.read(&mut bytes)?;
        self.sizes = cursor.place();
        let size = u32::from_le_bytes(bytes);
        let length = usize::try_from(self.left.min(u64::from(block_size))).unwrap_or(0);
        // Size 0: a hole.
        let block = if size == 0 { vec![0; length] } else { self.squashfs.data(self.at, size)? };
        if block.len() != length {
            return Err(SquashError::Damaged("a block is too short or too long"));
        }
        self.at = self.at.saturating_add(u64::from(size & 0x00ff_ffff));
        self.blocks -= 1;
        self.left -= length as u64;
        (self.block, self.used, self.end) = (Rc::new(block), 0, length);
        Ok(())
    }
}

impl Read for FileReader<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.end {
            if self.left == 0 {
                return Ok(0);
            }
            if let Err(fault) = self.refill() {
                self.fault = Some(fault);
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let n = buffer.len().min(self.end - self.used);
        buffer[..n].copy_from_slice(&self.block[self.used..self.used + n]);
        self.used += n;
        Ok(n)
    }
}
