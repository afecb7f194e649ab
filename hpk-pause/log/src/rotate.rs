//! Names, order, pruning and compression of one log's files.
//!
//! `<n>.log` is being written; `<n>.log.<YYYYMMDD-HHMMSS>` were (upstream kubelet's names), with `.<four digits>`
//! when more than one falls into a second, and `.gz` once compressed. The newest rotated one stays plain.
//! A compressed file keeps the modification time of its original, the time of its last record.

use flate2::{Compression, write::GzEncoder};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// File name of a log being written.
pub(crate) fn live_name(restart_count: u32) -> String {
    format!("{restart_count}.log")
}

/// One rotated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rotated {
    /// `YYYYMMDD-HHMMSS[.dddd]`: sorts by age.
    pub(crate) stamp: String,
    pub(crate) path: PathBuf,
    pub(crate) gz: bool,
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
}

/// Rotated files of one log, oldest first. A file that is both there plain and compressed (a compression that was
/// under way) counts once, as plain.
pub(crate) fn list(dir: &Path, restart_count: u32) -> io::Result<Vec<Rotated>> {
    let prefix = format!("{}.", live_name(restart_count));
    let mut files = Vec::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(&prefix)) else { continue };
        let (stamp, gz) = rest.strip_suffix(".gz").map_or((rest, false), |stamp| (stamp, true));
        if !is_stamp(stamp) {
            continue;
        }
        // It may have been pruned since the folder was read.
        let Ok(meta) = entry.metadata() else { continue };
        files.push(Rotated {
            stamp: stamp.to_owned(),
            path: entry.path(),
            gz,
            inode: meta.ino(),
            bytes: meta.len(),
            modified: meta.modified()?,
        });
    }
    files.sort_by(|a, b| (&a.stamp, a.gz).cmp(&(&b.stamp, b.gz)));
    files.dedup_by(|later, earlier| later.stamp == earlier.stamp);
    Ok(files)
}

/// [`list`] for readers. A file that is being compressed can escape one look at the folder, its old name gone and
/// its new one not yet passed, but not two in a row.
pub(crate) fn list_twice(dir: &Path, restart_count: u32) -> io::Result<Vec<Rotated>> {
    let mut files = list(dir, restart_count)?;
    files.extend(list(dir, restart_count)?);
    files.sort_by(|a, b| (&a.stamp, a.gz).cmp(&(&b.stamp, b.gz)));
    files.dedup_by(|later, earlier| later.stamp == earlier.stamp);
    Ok(files)
}

fn is_stamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |range: &[u8]| range.iter().all(u8::is_ascii_digit);
    match bytes.len() {
        15 => bytes[8] == b'-' && digits(&bytes[..8]) && digits(&bytes[9..]),
        20 => {
            bytes[8] == b'-'
                && bytes[15] == b'.'
                && digits(&bytes[..8])
                && digits(&bytes[9..15])
                && digits(&bytes[16..])
        }
        _ => false,
    }
}

/// Gives names to rotated files that sort by age even when many fall into one second, older ones are pruned
/// meanwhile, or the clock steps back.
#[derive(Debug, Default)]
pub(crate) struct Namer {
    second: String,
    count: u32,
}

impl Namer {
    /// The next name, for a file rotated at the time of `suffix` (`YYYYMMDD-HHMMSS`).
    pub(crate) fn next(&mut self, dir: &Path, restart_count: u32, suffix: &str) -> PathBuf {
        if suffix > self.second.as_str() {
            suffix.clone_into(&mut self.second);
            self.count = 0;
        } else {
            self.count += 1;
        }
        loop {
            let name = match self.count {
                0 => format!("{}.{}", live_name(restart_count), self.second),
                count => format!("{}.{}.{count:04}", live_name(restart_count), self.second),
            };
            // Only a supervisor before this one can have left a file of that name.
            if self.count >= 9_999 || !(dir.join(&name).exists() || dir.join(format!("{name}.gz")).exists()) {
                return dir.join(name);
            }
            self.count += 1;
        }
    }
}

/// Removes the oldest rotated files, so that with the live one at most `max_files` remain.
pub(crate) fn prune(dir: &Path, restart_count: u32, max_files: u32) -> io::Result<()> {
    let files = list(dir, restart_count)?;
    let keep = usize::try_from(max_files.saturating_sub(1)).unwrap_or(usize::MAX);
    for file in files.iter().take(files.len().saturating_sub(keep)) {
        remove(&file.path)?;
        if !file.gz {
            let mut compressed = file.path.clone().into_os_string();
            compressed.push(".gz");
            remove(Path::new(&compressed))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Compresses all rotated files but the newest. Returns whether there was anything to do.
pub(crate) fn compress(dir: &Path, restart_count: u32) -> io::Result<bool> {
    let files = list(dir, restart_count)?;
    let older = files.len().saturating_sub(1);
    let mut any = false;
    for file in files.iter().take(older).filter(|f| !f.gz) {
        any = true;
        match compress_one(file) {
            // Pruned meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(any)
}

fn compress_one(file: &Rotated) -> io::Result<()> {
    let name = |suffix: &str| {
        let mut name = file.path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (temporary, compressed) = (name(".tmp"), name(".gz"));
    let mut input = File::open(&file.path)?;
    let result = (|| {
        let output = File::create(&temporary)?;
        let mut encoder = GzEncoder::new(output, Compression::fast());
        io::copy(&mut input, &mut encoder)?;
        let output = encoder.finish()?;
        output.set_modified(file.modified)?;
        fs::rename(&temporary, &compressed)
    })();
    if let Err(error) = result {
        // Not being able to tidy up changes nothing about the error; the next attempt overwrites the file.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    remove(&file.path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn names(dir: &Path) -> Vec<String> {
        list(dir, 3).unwrap().into_iter().map(|f| f.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn listed_by_age_compressed_but_the_newest_and_pruned_from_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "3.log",
            "3.log.20261123-200001",
            "3.log.20261123-200000",
            "3.log.20261123-200000.0001",
            "3.log.20261123-200000.tmp",
            "3.log.other",
            "13.log.20261123-200000",
        ] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        assert_eq!(names(dir.path()), ["3.log.20261123-200000", "3.log.20261123-200000.0001", "3.log.20261123-200001"]);
        let before = fs::metadata(dir.path().join("3.log.20261123-200000")).unwrap().modified().unwrap();
        assert!(compress(dir.path(), 3).unwrap());
        assert!(!compress(dir.path(), 3).unwrap());
        assert_eq!(
            names(dir.path()),
            ["3.log.20261123-200000.gz", "3.log.20261123-200000.0001.gz", "3.log.20261123-200001"]
        );
        let gz = dir.path().join("3.log.20261123-200000.gz");
        assert_eq!(fs::metadata(&gz).unwrap().modified().unwrap(), before);
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(gz).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "3.log.20261123-200000");
        let mut namer = Namer::default();
        assert_eq!(namer.next(dir.path(), 3, "20261123-200000"), dir.path().join("3.log.20261123-200000.0002"));
        assert_eq!(namer.next(dir.path(), 3, "20261123-200002"), dir.path().join("3.log.20261123-200002"));
        assert_eq!(namer.next(dir.path(), 3, "20261123-195959"), dir.path().join("3.log.20261123-200002.0001"));
        prune(dir.path(), 3, 2).unwrap();
        assert_eq!(names(dir.path()), ["3.log.20261123-200001"]);
    }
}
