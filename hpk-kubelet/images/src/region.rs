//! A part of an open file, read by position: layers of one archive share the file without sharing an offset.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes that are read by position.
pub(crate) trait ReadAt {
    /// How many there are.
    fn length(&self) -> u64;

    /// Fills `buffer` from `at`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the bytes end before.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

/// `length` bytes of a file from `offset`. Whatever happens to the file's name, this stays the file that was opened.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) file: Arc<File>,
    /// Where it begins in the file, in bytes.
    pub(crate) offset: u64,
    /// How long it is, in bytes.
    pub(crate) length: u64,
}

impl Region {
    /// The whole of a file, as long as it is now.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), offset: 0, length })
    }

    /// A part of this one; None when it is not within it.
    pub(crate) fn part(&self, offset: u64, length: u64) -> Option<Self> {
        let end = offset.checked_add(length)?;
        (end <= self.length).then(|| Self { file: self.file.clone(), offset: self.offset + offset, length })
    }

    /// Reads it from its beginning.
    pub(crate) fn reader(&self) -> RegionReader {
        RegionReader { region: self.clone(), at: 0 }
    }
}

impl ReadAt for Region {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let end = at.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.offset + at)
    }
}

/// [`Region::reader`].
pub(crate) struct RegionReader {
    region: Region,
    at: u64,
}

impl Read for RegionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.region.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let n = self.region.file.read_at(&mut buffer[..wanted], self.region.offset.saturating_add(self.at))?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for RegionReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.region.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
impl ReadAt for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).map_err(io::Error::other)?;
        let from = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_part_ends_where_it_should() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let whole = Region::whole(file).unwrap();
        let part = whole.part(2, 5).unwrap();
        let mut text = String::new();
        part.reader().read_to_string(&mut text).unwrap();
        assert_eq!(text, "23456");
        assert!(part.part(1, 5).is_none() && whole.part(u64::MAX, 2).is_none());
        let mut byte = [0];
        assert!(part.read_exact_at(&mut byte, 5).is_err());
        part.read_exact_at(&mut byte, 4).unwrap();
        assert_eq!(&byte, b"6");
    }
}
