//! The live log file: appending whole records and rotating at a record's boundary.

use crate::{rotate, stamp};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// One `<n>.log`. Opened at the first append, and again after a failure (a file handle can go stale).
#[derive(Debug)]
pub(crate) struct LogFile {
    dir: PathBuf,
    restart_count: u32,
    max_bytes: u64,
    max_files: u32,
    open: Option<(File, u64)>,
    namer: rotate::Namer,
}

impl LogFile {
    pub(crate) fn new(dir: PathBuf, restart_count: u32, max_bytes: u64, max_files: u32) -> Self {
        Self { dir, restart_count, max_bytes, max_files, open: None, namer: rotate::Namer::default() }
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    pub(crate) fn restart_count(&self) -> u32 {
        self.restart_count
    }

    /// Creates folder and file when they are not there yet.
    pub(crate) fn ensure(&mut self) -> io::Result<()> {
        self.file().map(drop)
    }

    fn file(&mut self) -> io::Result<&mut (File, u64)> {
        if self.open.is_none() {
            fs::create_dir_all(&self.dir)?;
            let path = self.dir.join(rotate::live_name(self.restart_count));
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            let size = file.metadata()?.len();
            self.open = Some((file, size));
        }
        self.open.as_mut().ok_or_else(|| io::Error::other("log file is not open"))
    }

    /// Appends whole records, all or nothing, rotating before them when they would pass the size limit.
    /// Returns whether it rotated.
    pub(crate) fn append(&mut self, records: &mut [IoSlice<'_>], time: &[u8; stamp::LENGTH]) -> io::Result<bool> {
        let added = records.iter().map(|slice| slice.len() as u64).sum::<u64>();
        let (max_bytes, size) = (self.max_bytes, self.file()?.1);
        let rotated = max_bytes > 0 && size > 0 && size + added > max_bytes;
        if rotated {
            self.rotate(time)?;
        }
        let (file, size) = self.file()?;
        let before = *size;
        match write_all(file, records) {
            Ok(()) => {
                *size = before + added;
                Ok(rotated)
            }
            Err(error) => {
                // No half record may stay behind. When even that fails, the next reader skips the torn line.
                let _ = file.set_len(before);
                self.open = None;
                Err(error)
            }
        }
    }

    fn rotate(&mut self, time: &[u8; stamp::LENGTH]) -> io::Result<()> {
        let live = self.dir.join(rotate::live_name(self.restart_count));
        let name = self.namer.next(&self.dir, self.restart_count, &stamp::rotation_suffix(time));
        fs::rename(live, name)?;
        self.open = None;
        rotate::prune(&self.dir, self.restart_count, self.max_files)
    }
}

fn write_all(file: &mut File, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        match file.write_vectored(slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &[u8; stamp::LENGTH] = b"2026-11-23T20:00:00.123456789Z";

    #[test]
    fn rotates_at_the_limit_and_keeps_max_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::new(dir.path().join("c"), 0, 10, 3);
        let rotations = (0..6)
            .filter(|n| log.append(&mut [IoSlice::new(format!("record{n}\n").as_bytes())], TIME).unwrap())
            .count();
        assert_eq!(rotations, 5);
        let kept: Vec<_> =
            rotate::list(log.dir(), 0).unwrap().into_iter().map(|f| fs::read_to_string(f.path).unwrap()).collect();
        assert_eq!(kept, ["record3\n", "record4\n"]);
        assert_eq!(fs::read_to_string(log.dir().join("0.log")).unwrap(), "record5\n");
    }

    #[test]
    fn a_full_disk_is_an_error_and_leaves_the_log_usable() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("0.log");
        std::os::unix::fs::symlink("/dev/full", &live).unwrap();
        let mut log = LogFile::new(dir.path().to_owned(), 0, 0, 3);
        assert_eq!(log.append(&mut [IoSlice::new(b"x\n")], TIME).unwrap_err().kind(), io::ErrorKind::StorageFull);
        fs::remove_file(&live).unwrap();
        log.append(&mut [IoSlice::new(b"x\n")], TIME).unwrap();
        assert_eq!(fs::read_to_string(live).unwrap(), "x\n");
    }
}
