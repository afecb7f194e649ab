//! mksquashfs: where it is, and how it is asked.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where distributions and Apptainer itself have it, beside PATH.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/libexec/apptainer/bin", "/usr/local/libexec/apptainer/bin"];

/// Most memory that it may take for its caches, of a login node that others share.
const MEMORY: &str = "256M";
/// Most processors, of the same.
const PROCESSORS: usize = 4;

/// The program, and what it compresses by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mksquashfs {
    program: PathBuf,
    compressor: Compressor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Compressor {
    Gzip,
    Zstd,
}

/// The program that makes one file of an image.
///
/// # Errors
/// Why there is none, and what can be done.
pub fn packer() -> Result<String, String> {
    Mksquashfs::find().map(|found| found.program.display().to_string())
}

impl Mksquashfs {
    /// # Errors
    /// There is none; and what can be done.
    pub(crate) fn find() -> Result<Self, String> {
        let beside = which::which("apptainer").ok().and_then(|apptainer| {
            let real = std::fs::canonicalize(apptainer).ok()?;
            Some(real.parent()?.parent()?.join("libexec/apptainer/bin"))
        });
        let folders = FOLDERS.iter().map(PathBuf::from).chain(beside).map(|folder| folder.join("mksquashfs"));
        let program = which::which("mksquashfs").ok().or_else(|| folders.into_iter().find(|path| path.is_file()));
        let program = program.ok_or(
            "there is no mksquashfs, which makes one file of an image: install squashfs-tools, or keep images as folders \
             by hpk up --image-layout folder",
        )?;
        let compressor = Compressor::best(&said(&program));
        Ok(Self { program, compressor })
    }

    /// Packs the folder `tree` into the file `out`, with owners and modes as this process sees them.
    pub(crate) fn pack(&self, tree: &Path, out: &Path) -> Result<(), String> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(PROCESSORS);
        let mut command = Command::new(&self.program);
        command.args([tree, out]).args(["-noappend", "-no-progress", "-no-recovery", "-mem", MEMORY]);
        command.args(["-processors", &processors.to_string()]).args(self.compressor.flags());
        // It would put its own times in the place of the files'.
        command.env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null()).stdout(Stdio::null());
        let output = command.output().map_err(|e| format!("{}: {e}", self.program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} ended with {}: {}", self.program.display(), output.status, text.trim()))
    }
}

/// What the program says of itself; versions differ in where they say it, and with which exit code.
fn said(program: &Path) -> String {
    let all = ["-help", "-help-all"].iter().filter_map(|flag| Command::new(program).arg(flag).output().ok());
    all.map(|o| [String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)].concat()).collect()
}

impl Compressor {
    /// zstd is read several times as fast as gzip. Whoever cannot mount it unpacks it: HPK's own reader knows both.
    fn best(said: &str) -> Self {
        if said.contains("zstd") { Self::Zstd } else { Self::Gzip }
    }

    /// Levels that keep up with a disk: the defaults, 15 and 9, take several times as long for a few percent.
    fn flags(self) -> [&'static str; 4] {
        match self {
            Self::Gzip => ["-comp", "gzip", "-Xcompression-level", "5"],
            Self::Zstd => ["-comp", "zstd", "-Xcompression-level", "3"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_where_it_is_known() {
        assert_eq!(Compressor::best("Compressors available:\n\tgzip (default)\n\tzstd\n"), Compressor::Zstd);
        assert_eq!(Compressor::best("\tgzip (default)\n\txz\n"), Compressor::Gzip);
    }
}
