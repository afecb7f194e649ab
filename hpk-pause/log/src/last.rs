//! How far a reader has come through a log's files: what it goes on with when it is through with those that it knows.

use crate::rotate::Rotated;
use std::time::SystemTime;

/// A file that is done with, or will be once the queue is. Its inode alone does not tell: once it is compressed, that may be another file's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    pub(crate) inode: u64,
    pub(crate) modified: SystemTime,
    /// How many files of this very time are done with: a fast writer fills several within one tick of the kernel's clock.
    same: usize,
}

impl Last {
    pub(crate) const NONE: Self = Self { inode: 0, modified: SystemTime::UNIX_EPOCH, same: 0 };

    /// The newest of these, which are in order.
    pub(crate) fn of(files: &[Rotated]) -> Option<Self> {
        let newest = files.last()?;
        let same = files.iter().rev().take_while(|file| file.modified == newest.modified).count();
        Some(Self { inode: newest.inode, modified: newest.modified, same })
    }

    pub(crate) fn then(self, inode: u64, modified: SystemTime) -> Self {
        let same = if modified == self.modified { self.same + 1 } else { 1 };
        Self { inode, modified, same }
    }

    pub(crate) fn is(&self, inode: u64, modified: SystemTime) -> bool {
        self.inode == inode && self.modified == modified
    }

    /// Which of these, in order, come after it.
    pub(crate) fn successors(&self, files: Vec<Rotated>) -> impl Iterator<Item = Rotated> {
        let plain = files.iter().position(|file| !file.gz && self.is(file.inode, file.modified));
        let first = plain.map_or_else(
            // Compressed since, or pruned: its successors were modified later.
            || files.iter().take_while(|file| file.modified < self.modified).count() + self.still(&files),
            |position| position + 1,
        );
        files.into_iter().skip(first)
    }

    /// How many of these have its time and are done with.
    fn still(&self, files: &[Rotated]) -> usize {
        files.iter().filter(|file| file.modified == self.modified).count().min(self.same)
    }
}
