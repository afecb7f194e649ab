//! Extended attributes: a list for each inode that has some, in tables of their own.

use super::block::{Result, SquashError, u16_at, u32_at, u64_at};
use super::metadata::Cursor;
use super::{Inode, Squashfs};
use crate::region::ReadAt;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Of an inode: it has none. Of the superblock: no inode has any.
pub(super) const NONE: u32 = u32::MAX;

/// Attributes of one inode that are read: no file system keeps more.
const MOST: u32 = 1024;
/// Bytes of one name and of one value, as Linux has it.
const NAME: usize = 255;
const VALUE: usize = 64 << 10;
/// Bytes of an inode's entry in the table.
const ENTRY: usize = 16;
/// Of an attribute's kind: the value is elsewhere.
const ELSEWHERE: u16 = 0x100;

/// Where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    start: u64,
    ids: u32,
    pointers: u64,
}

impl Table {
    /// None: there are none.
    pub(super) fn open(image: &dyn ReadAt, at: u64) -> Result<Option<Self>> {
        if at == u64::MAX {
            return Ok(None);
        }
        let mut head = [0; 16];
        image.read_exact_at(&mut head, at)?;
        let pointers = at.checked_add(16).ok_or(SquashError::Damaged("its attributes are nowhere"))?;
        Ok(Some(Self { start: u64_at(&head, 0), ids: u32_at(&head, 8), pointers }))
    }
}

impl Squashfs<'_> {
    /// The extended attributes of an inode, with their full names.
    pub(crate) fn attributes(&mut self, inode: &Inode) -> Result<Vec<(OsString, Vec<u8>)>> {
        const BAD: SquashError = SquashError::Damaged("an attribute is impossible");
        let (Some(table), index) = (self.attributes, inode.attributes) else { return Ok(Vec::new()) };
        if index == NONE {
            return Ok(Vec::new());
        }
        if index >= table.ids {
            return Err(SquashError::Damaged("an inode's attributes are unknown"));
        }
        let entry = self.look_up::<ENTRY>(table.pointers, u64::from(index))?;
        let (place, count) = (u64_at(&entry, 0), u32_at(&entry, 8));
        if count > MOST {
            return Err(SquashError::Damaged("an inode has too many attributes"));
        }
        let at = |reference: u64| -> Result<(u64, usize)> {
            let block = table.start.checked_add(reference >> 16).ok_or(BAD)?;
            Ok((block, usize::from(u16_at(&reference.to_le_bytes(), 0))))
        };
        let mut here = at(place)?;
        let mut found = Vec::new();
        for _ in 0..count {
            let mut cursor = self.tables.cursor_at(here);
            let mut head = [0; 4];
            cursor.read(&mut head)?;
            let (kind, length) = (u16_at(&head, 0), usize::from(u16_at(&head, 2)));
            let prefix: &[u8] = match kind & 0xff {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                _ => return Err(BAD),
            };
            if length == 0 || length > NAME {
                return Err(BAD);
            }
            let mut rest = vec![0; length];
            cursor.read(&mut rest)?;
            let mut value = value(&mut cursor)?;
            here = cursor.place();
            if kind & ELSEWHERE != 0 {
                let reference = value.get(..8).map(|_| u64_at(&value, 0)).ok_or(BAD)?;
                value = self::value(&mut self.tables.cursor_at(at(reference)?))?;
            }
            found.push((OsString::from_vec([prefix, &rest].concat()), value));
        }
        Ok(found)
    }
}

fn value(cursor: &mut Cursor<'_, '_>) -> Result<Vec<u8>> {
    let mut length = [0; 4];
    cursor.read(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > VALUE {
        return Err(SquashError::Damaged("an attribute is too long"));
    }
    let mut value = vec![0; length];
    cursor.read(&mut value)?;
    Ok(value)
}
