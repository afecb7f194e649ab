//! Reads a SquashFS 4.0 file system, as `mksquashfs` writes it into Apptainer's image files.
//!
//! The input is hostile: every offset and length is checked, what is kept in memory is bounded whatever the input says,
//! and an error never shows bytes of it. Reads by position only; writes nothing. Layout: Linux,
//! Documentation/filesystems/squashfs.rst.

mod attributes;
mod metadata;

use crate::region::ReadAt;
use metadata::{Cursor, Metadata};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::rc::Rc;

/// Why a file system cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SquashError {
    #[error("the SquashFS partition is damaged: {0}")]
    Damaged(&'static str),
    #[error("its SquashFS is compressed by {0}; build the image again with gzip, lz4 or zstd")]
    Compression(&'static str),
    #[error("reading the SquashFS partition: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for SquashError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it ends too early"),
            _ => Self::Io(e),
        }
    }
}

type Result<T> = std::result::Result<T, SquashError>;

/// Most bytes of one folder's listing that are read: some millions of entries.
const MAX_LISTING: u32 = 64 << 20;
/// Fragment blocks kept; a file's tail shares one with its neighbours.
const FRAGMENTS_KEPT: usize = 16;
/// Memory for one zstd block.
const MAX_WINDOW: u64 = 8 << 20;
const NO_FRAGMENT: u32 = u32::MAX;
const FRAGMENT_ENTRY: usize = 16;
const METADATA_BLOCK: u64 = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compressor {
    Gzip,
    Lz4,
    Zstd,
}

impl Compressor {
    fn of(id: u16) -> Result<Self> {
        match id {
            1 => Ok(Self::Gzip),
            6 => Ok(Self::Zstd),
            2 => Err(SquashError::Compression("lzma")),
            3 => Err(SquashError::Compression("lzo")),
            4 => Err(SquashError::Compression("xz")),
            5 => Ok(Self::Lz4),
            _ => Err(SquashError::Damaged("unknown compression")),
        }
    }

    /// At most `most` bytes from a compressed block.
    fn expand(self, packed: &[u8], most: usize) -> Result<Vec<u8>> {
        const BROKEN: SquashError = SquashError::Damaged("a compressed block cannot be read");
        let read = |reader: &mut dyn Read| {
            let mut plain = Vec::with_capacity(most);
            reader.take(most as u64 + 1).read_to_end(&mut plain).map_err(|_| BROKEN)?;
            Ok::<_, SquashError>(plain)
        };
        let plain = match self {
            Self::Gzip => read(&mut flate2::read::ZlibDecoder::new(packed))?,
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(packed, MAX_WINDOW);
                read(&mut decoder.map_err(|_| BROKEN)?)?
            }
            Self::Lz4 => {
                let mut plain = vec![0; most];
                let length = lz4_flex::block::decompress_into(packed, &mut plain).map_err(|_| BROKEN)?;
                plain.truncate(length);
                plain
            }
        };
        if plain.len() > most {
            return Err(SquashError::Damaged("a block is larger than it may be"));
        }
        Ok(plain)
    }
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder(Listing),
    File(Content),
    Symlink(Vec<u8>),
    Device,
    Fifo,
    Socket,
}

/// Where a folder's entries are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    block: u32,
    offset: u16,
    /// Bytes and three more.
    size: u32,
}

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Bytes of the file.
    pub(crate) size: u64,
    start: u64,
    fragment: u32,
    fragment_offset: u32,
    /// Where the inode's list of block sizes is.
    sizes: (u64, usize),
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) time: u32,
    pub(crate) number: u32,
    /// Names it has.
    pub(crate) links: u32,
    /// Which entry of the table of attributes.
    attributes: u32,
    pub(crate) kind: Kind,
}

/// A folder's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Neither empty, `.` nor `..`, without `/` and NUL.
    pub(crate) name: Vec<u8>,
    inode: u64,
}

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

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
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
        let blocks = match content.fragment {
            NO_FRAGMENT => content.size.div_ceil(u64::from(self.block_size)),
            _ => content.size / u64::from(self.block_size),
        };
        FileReader {
            at: content.start,
            left: content.size,
            blocks,
            sizes: content.sizes,
            tail: (content.fragment, content.fragment_offset),
            block: Rc::new(Vec::new()),
            used: 0,
            end: 0,
            fault: None,
            squashfs: self,
        }
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

/// What follows an inode's head: number of names, the rest, and which attributes it has.
fn body(kind: u16, cursor: &mut Cursor<'_, '_>) -> Result<(u32, Kind, u32)> {
    let mut attributes = attributes::NONE;
    let mut take = |size: usize| -> Result<[u8; 40]> {
        let mut bytes = [0; 40];
        cursor.read(&mut bytes[..size])?;
        Ok(bytes)
    };
    let (links, kind) = match kind {
        1 => {
            let b = take(16)?;
            let listing = Listing { block: u32_at(&b, 0), size: u32::from(u16_at(&b, 8)), offset: u16_at(&b, 10) };
            (1, Kind::Folder(listing))
        }
        8 => {
            let b = take(24)?;
            attributes = u32_at(&b, 20);
            let listing = Listing { size: u32_at(&b, 4), block: u32_at(&b, 8), offset: u16_at(&b, 18) };
            (1, Kind::Folder(listing))
        }
        2 => {
            let b = take(16)?;
            let content = Content {
                start: u64::from(u32_at(&b, 0)),
                fragment: u32_at(&b, 4),
                fragment_offset: u32_at(&b, 8),
                size: u64::from(u32_at(&b, 12)),
                sizes: cursor.place(),
            };
            (1, Kind::File(content))
        }
        9 => {
            let b = take(40)?;
            let content = Content {
                start: u64_at(&b, 0),
                size: u64_at(&b, 8),
                fragment: u32_at(&b, 28),
                fragment_offset: u32_at(&b, 32),
                sizes: cursor.place(),
            };
            attributes = u32_at(&b, 36);
            (u32_at(&b, 24), Kind::File(content))
        }
        3 | 10 => {
            let b = take(8)?;
            let size = u32_at(&b, 4);
            if !(1..4096).contains(&size) {
                return Err(SquashError::Damaged("a link's target is impossible"));
            }
            let mut target = vec![0; size as usize];
            cursor.read(&mut target)?;
            if target.contains(&0) {
                return Err(SquashError::Damaged("a link's target is impossible"));
            }
            (u32_at(&b, 0), Kind::Symlink(target))
        }
        4 | 5 | 11 | 12 => (1, Kind::Device),
        6 | 13 => (u32_at(&take(4)?, 0), Kind::Fifo),
        7 | 14 => (1, Kind::Socket),
        _ => return Err(SquashError::Damaged("an inode is of no known kind")),
    };
    Ok((links, kind, attributes))
}

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

impl FileReader<'_, '_> {
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

#[cfg(test)]
mod tests;
