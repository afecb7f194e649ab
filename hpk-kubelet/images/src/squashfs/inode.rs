//! Inodes and folders' entries, as they are stored.

use super::attributes;
use super::block::{Result, SquashError, u16_at, u32_at, u64_at};
use super::metadata::Cursor;

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
    pub(super) block: u32,
    pub(super) offset: u16,
    /// Bytes and three more.
    pub(super) size: u32,
}

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Bytes of the file.
    pub(crate) size: u64,
    pub(super) start: u64,
    pub(super) fragment: u32,
    pub(super) fragment_offset: u32,
    /// Where the inode's list of block sizes is.
    pub(super) sizes: (u64, usize),
}

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
    pub(super) attributes: u32,
    pub(crate) kind: Kind,
}

/// A folder's entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Neither empty, `.` nor `..`, without `/` and NUL.
    pub(crate) name: Vec<u8>,
    pub(super) inode: u64,
}

/// What follows an inode's head: number of names, the rest, and which attributes it has.
pub(super) fn body(kind: u16, cursor: &mut Cursor<'_, '_>) -> Result<(u32, Kind, u32)> {
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
