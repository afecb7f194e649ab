//! Reads a SquashFS 4.0 file system, as `mksquashfs` writes it into Apptainer's image files.
//!
//! The input is hostile: every offset and length is checked, what is kept in memory is bounded whatever the input says,
//! and an error never shows bytes of it. Reads by position only; writes nothing. Layout: Linux,
//! Documentation/filesystems/squashfs.rst.

mod attributes;
mod block;
mod file;
mod inode;
mod metadata;

use crate::region::ReadAt;
pub(crate) use block::SquashError;
use block::{Compressor, Result, u16_at, u32_at, u64_at};
use file::FileReader;
use inode::body;
pub(crate) use inode::{Content, Entry, Inode, Kind, Listing};
use metadata::Metadata;
use std::collections::VecDeque;
use std::rc::Rc;

/// Most bytes of one folder's listing that are read: some millions of entries.
const MAX_LISTING: u32 = 64 << 20;
/// Fragment blocks kept; a file's tail shares one with its neighbours.
const FRAGMENTS_KEPT: usize = 16;
const FRAGMENT_ENTRY: usize = 16;
const METADATA_BLOCK: u64 = 8192;

/// An open file system.
pub(crate) struct Squashfs<'a> {
    image: &'a dyn ReadAt,
    compressor: Compressor,
    block_size: u32,
    root: u64,
    ids: Vec<u32>,
    fragments: u32,
    /// Where the pointers to the fragment table's blocks are.
    fragment_table: u64,
    inodes: Metadata<'a>,
    folders: Metadata<'a>,
    /// Of the tables that other tables point to.
    tables: Metadata<'a>,
    attributes: Option<attributes::Table>,
    tails: VecDeque<(u64, Rc<Vec<u8>>)>,
}

impl<'a> Squashfs<'a> {
    /// Reads the superblock and the table of owners.
    pub(crate) fn open(image: &'a dyn ReadAt) -> Result<Self> {
        let mut head = [0; 96];
        image.read_exact_at(&mut head, 0)?;
        if &head[..4] != b"hsqs" {
            return Err(SquashError::Damaged("its magic number is missing"));
        }
        if (u16_at(&head, 28), u16_at(&head, 30)) != (4, 0) {
            return Err(SquashError::Damaged("it is not of version 4.0"));
        }
        let compressor = Compressor::of(u16_at(&head, 20))?;
        let (block_size, block_log) = (u32_at(&head, 12), u16_at(&head, 22));
        if !(12..=20).contains(&block_log) || block_size != 1 << block_log {
            return Err(SquashError::Damaged("its block size is impossible"));
        }
        let table = |start| Metadata::new(image, compressor, start);
        let mut squashfs = Self {
            image,
            compressor,
            block_size,
            root: u64_at(&head, 32),
            ids: Vec::new(),
            fragments: u32_at(&head, 16),
            fragment_table: u64_at(&head, 80),
            inodes: table(u64_at(&head, 64)),
            folders: table(u64_at(&head, 72)),
            tables: table(0),
            attributes: attributes::Table::open(image, u64_at(&head, 56))?,
            tails: VecDeque::new(),
        };
        let (pointers, count) = (u64_at(&head, 48), u16_at(&head, 26));
        for n in 0..u64::from(count) {
            let bytes = squashfs.look_up::<4>(pointers, n)?;
            squashfs.ids.push(u32_at(&bytes, 0));
        }
        Ok(squashfs)
    }

    /// Entry `n` of a table of `SIZE`-byte entries, whose blocks are pointed to from `pointers` on.
    fn look_up<const SIZE: usize>(&mut self, pointers: u64, n: u64) -> Result<[u8; SIZE]> {
        let at = n * SIZE as u64;
        let mut pointer = [0; 8];
        let here = pointers.checked_add(at / METADATA_BLOCK * 8).ok_or(SquashError::Damaged("a table is nowhere"))?;
        self.image.read_exact_at(&mut pointer, here)?;
        let offset = usize::try_from(at % METADATA_BLOCK).unwrap_or(0);
        let mut entry = [0; SIZE];
        self.tables.cursor(u64::from_le_bytes(pointer), offset).read(&mut entry)?;
        Ok(entry)
    }

    /// The root folder.
    pub(crate) fn root(&mut self) -> Result<Inode> {
        let root = self.inode_at(self.root)?;
        match root.kind {
            Kind::Folder(_) => Ok(root),
            _ => Err(SquashError::Damaged("its root is not a folder")),
        }
    }

    /// What an entry names.
    pub(crate) fn inode(&mut self, entry: &Entry) -> Result<Inode> {
        self.inode_at(entry.inode)
    }

    fn id(&self, index: u16) -> Result<u32> {
        self.ids.get(usize::from(index)).copied().ok_or(SquashError::Damaged("an owner is unknown"))
    }

    /// `reference`: block in the inode table, and offset in the block.
    fn inode_at(&mut self, reference: u64) -> Result<Inode> {
        let offset = usize::from(u16_at(&reference.to_le_bytes(), 0));
        let mut cursor = self.inodes.cursor(reference >> 16, offset);
        let mut head = [0; 16];
        cursor.read(&mut head)?;
        let (mut links, kind, attributes) = body(u16_at(&head, 0), &mut cursor)?;
        if matches!(kind, Kind::Folder(_)) {
            links = 1;
        }
        Ok(Inode {
            mode: u32::from(u16_at(&head, 2)) & 0o7777,
            uid: self.id(u16_at(&head, 4))?,
            gid: self.id(u16_at(&head, 6))?,
            time: u32_at(&head, 8),
            number: u32_at(&head, 12),
            links,
            attributes,
            kind,
        })
    }

    /// A folder's entries.
    pub(crate) fn entries(&mut self, listing: Listing) -> Result<Vec<Entry>> {
        let mut left = listing.size.saturating_sub(3);
        if left > MAX_LISTING {
            return Err(SquashError::Damaged("a folder is too large"));
        }
        let mut cursor = self.folders.cursor(u64::from(listing.block), usize::from(listing.offset));
        let mut take = |bytes: &mut [u8]| {
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            left = left.checked_sub(size).ok_or(SquashError::Damaged("a folder's list is cut off"))?;
            cursor.read(bytes)?;
            Ok::<_, SquashError>(left)
        };
        let mut entries = Vec::new();
        if listing.size <= 3 {
            return Ok(entries);
        }
        loop {
            let mut head = [0; 12];
            let mut rest = take(&mut head)?;
            // One less than there are; 256 at most.
            if u32_at(&head, 0) > 255 {
                return Err(SquashError::Damaged("a folder's list is wrong"));
            }
            for _ in 0..=u32_at(&head, 0) {
                let mut fixed = [0; 8];
                take(&mut fixed)?;
                let size = usize::from(u16_at(&fixed, 6)) + 1;
                if size > 255 {
                    return Err(SquashError::Damaged("a name is too long"));
                }
                let mut name = vec![0; size];
                rest = take(&mut name)?;
                if name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
                    return Err(SquashError::Damaged("a name is not one"));
                }
                let inode = u64::from(u32_at(&head, 4)) << 16 | u64::from(u16_at(&fixed, 0));
                entries.push(Entry { name, inode });
            }
            if rest == 0 {
                return Ok(entries);
            }
        }
    }

    /// A file's bytes.
    pub(crate) fn read<'s>(&'s mut self, content: &Content) -> FileReader<'s, 'a> {
        FileReader::new(self, content)
    }

    /// `size`: bytes as stored; bit 24: they are not compressed.
    fn data(&self, at: u64, size: u32) -> Result<Vec<u8>> {
        let stored = size & 0x00ff_ffff;
        if stored > self.block_size || stored == 0 {
            return Err(SquashError::Damaged("a block's size is impossible"));
        }
        let mut bytes = vec![0; stored as usize];
        self.image.read_exact_at(&mut bytes, at)?;
        if size & 0x0100_0000 != 0 {
            return Ok(bytes);
        }
        self.compressor.expand(&bytes, self.block_size as usize)
    }

    /// The block that holds tails of files.
    fn fragment(&mut self, index: u32) -> Result<Rc<Vec<u8>>> {
        if index >= self.fragments {
            return Err(SquashError::Damaged("a fragment is unknown"));
        }
        let entry = self.look_up::<FRAGMENT_ENTRY>(self.fragment_table, u64::from(index))?;
        let (at, size) = (u64_at(&entry, 0), u32_at(&entry, 8));
        if let Some((_, known)) = self.tails.iter().find(|(start, _)| *start == at) {
            return Ok(known.clone());
        }
        let block = Rc::new(self.data(at, size)?);
        if self.tails.len() >= FRAGMENTS_KEPT {
            self.tails.pop_front();
        }
        self.tails.push_back((at, block.clone()));
        Ok(block)
    }
}

#[cfg(test)]
mod tests;
