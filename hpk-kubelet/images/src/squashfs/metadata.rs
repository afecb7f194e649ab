//! Metadata blocks: tables of up to 8 KiB a block, each compressed by itself, read as if they were one.

use super::block::{Compressor, Result, SquashError};
use crate::region::ReadAt;
use std::collections::VecDeque;
use std::rc::Rc;

const BLOCK: usize = 8192;
/// Blocks kept; entries of a folder lead to inodes that lie together.
const KEPT: usize = 64;

#[derive(Clone)]
struct Block {
    at: u64,
    bytes: Rc<Vec<u8>>,
    next: u64,
}

/// A table that begins at `start`.
pub(super) struct Metadata<'a> {
    image: &'a dyn ReadAt,
    compressor: Compressor,
    start: u64,
    kept: VecDeque<Block>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(image: &'a dyn ReadAt, compressor: Compressor, start: u64) -> Self {
        Self { image, compressor, start, kept: VecDeque::new() }
    }

    fn block(&mut self, at: u64) -> Result<Block> {
        if let Some(known) = self.kept.iter().rev().find(|b| b.at == at) {
            return Ok(known.clone());
        }
        let mut head = [0; 2];
        self.image.read_exact_at(&mut head, at)?;
        let head = u16::from_le_bytes(head);
        let size = usize::from(head & 0x7fff);
        if size == 0 || size > BLOCK {
            return Err(SquashError::Damaged("a table's block has an impossible size"));
        }
        let mut bytes = vec![0; size];
        self.image.read_exact_at(&mut bytes, at + 2)?;
        if head & 0x8000 == 0 {
            bytes = self.compressor.expand(&bytes, BLOCK)?;
        }
        let block = Block { at, bytes: Rc::new(bytes), next: at + 2 + size as u64 };
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(block.clone());
        Ok(block)
    }

    /// Reads from the block at `block` bytes after the table's start, `offset` bytes into it.
    pub(super) fn cursor(&mut self, block: u64, offset: usize) -> Cursor<'_, 'a> {
        let at = self.start.saturating_add(block);
        Cursor { metadata: self, at, offset }
    }

    /// Reads on from [`Cursor::place`].
    pub(super) fn cursor_at(&mut self, (at, offset): (u64, usize)) -> Cursor<'_, 'a> {
        Cursor { metadata: self, at, offset }
    }
}

/// Reads on from a place in a table, over the ends of blocks.
pub(super) struct Cursor<'m, 'a> {
    metadata: &'m mut Metadata<'a>,
    at: u64,
    offset: usize,
}

impl Cursor<'_, '_> {
    pub(super) fn read(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let block = self.metadata.block(self.at)?;
            let rest = block.bytes.get(self.offset..).ok_or(SquashError::Damaged("an offset leads nowhere"))?;
            let n = rest.len().min(out.len());
            out[..n].copy_from_slice(&rest[..n]);
            out = &mut out[n..];
            self.offset += n;
            if self.offset == block.bytes.len() {
                (self.at, self.offset) = (block.next, 0);
            }
        }
        Ok(())
    }

    /// Where the next byte is.
    pub(super) fn place(&self) -> (u64, usize) {
        (self.at, self.offset)
    }
}
