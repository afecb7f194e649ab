//! Apptainer image files (SIF): where the root file system is in one, and how a container of it runs.
//!
//! Nothing but the file's own tables is believed, and no other program reads the file: `apptainer build` takes whatever
//! has no SIF magic for a definition file and runs commands from it. Layout: github.com/sylabs/sif, pkg/sif: a header
//! of 128 bytes, then a table of descriptors of 585 bytes each, all numbers little-endian.
//!
//! A SIF has no OCI configuration that Apptainer promises to keep, so its own start-up script is the entry point, run as
//! `apptainer run` would: with the image's environment scripts sourced first.

use crate::config::ImageConfig;
use crate::region::{ReadAt, Region};
use std::path::Path;

/// Sources `/.singularity.d/env/*.sh`, then becomes the run script with the container's args.
const RUN: &str = "for f in /.singularity.d/env/*.sh; do [ -f \"$f\" ] && . \"$f\"; done; \
                   exec /.singularity.d/runscript \"$@\"";

const HEADER: usize = 128;
const DESCRIPTOR: usize = 585;
/// Far more than the 48 that Apptainer makes room for.
const MAX_DESCRIPTORS: u64 = 4096;
const PARTITION: u32 = 0x4004;
const SQUASHFS: u32 = 1;
const ENCRYPTED_SQUASHFS: u32 = 5;
const PRIMARY_SYSTEM: u32 = 2;

/// Why a file is no SIF that can run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SifError {
    #[error("it is not a SIF: Apptainer's mark is missing")]
    NotSif,
    #[error("the SIF is damaged: {0}")]
    Damaged(&'static str),
    #[error("the SIF has no root file system (primary system partition)")]
    NoSystem,
    #[error("the SIF's root file system is encrypted")]
    Encrypted,
    #[error("the SIF's root file system is not a SquashFS; build it again with Apptainer 1.0 or later")]
    NotSquashfs,
    #[error("the SIF is for another architecture (Apptainer's number {0:?})")]
    Architecture(String),
}

/// Finds the root file system: its offset and length in the file, bytes.
///
/// # Errors
/// [`SifError`], also when the file cannot be read.
pub(crate) fn system_partition(file: &dyn ReadAt) -> Result<(u64, u64), SifError> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(|_| SifError::NotSif)?;
    if &header[32..42] != b"SIF_MAGIC\0" {
        return Err(SifError::NotSif);
    }
    let (count, table) = (number(&header, 88)?, number(&header, 96)?);
    if count > MAX_DESCRIPTORS {
        return Err(SifError::Damaged("it has too many descriptors"));
    }
    for n in 0..count {
        let mut descriptor = [0; DESCRIPTOR];
        let at = table.checked_add(n * DESCRIPTOR as u64).ok_or(SifError::Damaged("its table is nowhere"))?;
        file.read_exact_at(&mut descriptor, at).map_err(|_| SifError::Damaged("its table is cut off"))?;
        if let Some(found) = system_of(&descriptor, file.length())? {
            return Ok(found);
        }
    }
    Err(SifError::NoSystem)
}

fn system_of(descriptor: &[u8; DESCRIPTOR], file_length: u64) -> Result<Option<(u64, u64)>, SifError> {
    let extra = &descriptor[201..];
    let used = descriptor[4] != 0;
    if !used || word(descriptor, 0) != PARTITION || word(extra, 4) != PRIMARY_SYSTEM {
        return Ok(None);
    }
    match word(extra, 0) {
        SQUASHFS => {}
        ENCRYPTED_SQUASHFS => return Err(SifError::Encrypted),
        _ => return Err(SifError::NotSquashfs),
    }
    let architecture = String::from_utf8_lossy(&extra[8..10]).into_owned();
    if ours().is_some_and(|ours| architecture != ours && architecture != "00") {
        return Err(SifError::Architecture(architecture.escape_debug().to_string()));
    }
    let (offset, length) = (number(descriptor, 17)?, number(descriptor, 25)?);
    match offset.checked_add(length) {
        Some(end) if end <= file_length => Ok(Some((offset, length))),
        _ => Err(SifError::Damaged("its root file system is cut off")),
    }
}

/// This machine as SIF numbers architectures.
fn ours() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "x86" => Some("01"),
        "x86_64" => Some("02"),
        "arm" => Some("03"),
        "aarch64" => Some("04"),
        "powerpc64" => Some(if cfg!(target_endian = "little") { "06" } else { "05" }),
        "s390x" => Some("11"),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// A number that SIF stores with a sign.
fn number(bytes: &[u8], at: usize) -> Result<u64, SifError> {
    let number = u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32;
    i64::try_from(number).map(i64::unsigned_abs).map_err(|_| SifError::Damaged("a number in it is negative"))
}

/// The root file system as a region of an open file.
///
/// # Errors
/// As [`system_partition`].
pub(crate) fn root_of(file: &Region) -> Result<Region, SifError> {
    let (offset, length) = system_partition(file)?;
    file.part(offset, length).ok_or(SifError::Damaged("its root file system is cut off"))
}

/// How a container of this image runs.
pub(crate) fn config(rootfs: &Path) -> ImageConfig {
    // No link is followed: it could lead out of the image.
    let is = |path: &str, what: fn(&std::fs::Metadata) -> bool| {
        std::fs::symlink_metadata(rootfs.join(path)).is_ok_and(|meta| what(&meta))
    };
    let runscript =
        is(".singularity.d", std::fs::Metadata::is_dir) && is(".singularity.d/runscript", std::fs::Metadata::is_file);
    ImageConfig {
        entrypoint: if runscript { ["/bin/sh", "-c", RUN, "sh"].map(str::to_owned).into() } else { Vec::new() },
        cmd: if runscript { Vec::new() } else { vec!["/bin/sh".to_owned()] },
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        ..ImageConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A SIF with descriptors of (data type, fs type, partition type, architecture, offset, length).
    fn sif(descriptors: &[(u32, u32, u32, &str, i64, i64)], payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[..31].copy_from_slice(b"#!/usr/bin/env run-singularity\n");
        bytes[32..42].copy_from_slice(b"SIF_MAGIC\0");
        bytes[88..96].copy_from_slice(&(descriptors.len() as u64).to_le_bytes());
        bytes[96..104].copy_from_slice(&(HEADER as u64).to_le_bytes());
        for (kind, fs, part, arch, offset, length) in descriptors {
            let mut one = vec![0; DESCRIPTOR];
            one[..4].copy_from_slice(&kind.to_le_bytes());
            one[4] = 1;
            one[17..25].copy_from_slice(&offset.to_le_bytes());
            one[25..33].copy_from_slice(&length.to_le_bytes());
            one[201..205].copy_from_slice(&fs.to_le_bytes());
            one[205..209].copy_from_slice(&part.to_le_bytes());
            one[209..209 + arch.len()].copy_from_slice(arch.as_bytes());
            bytes.extend(one);
        }
        bytes.resize(bytes.len() + payload, 0);
        bytes
    }

    #[test]
    fn the_system_partition_is_found_among_others() {
        let arch = ours().unwrap_or("00");
        let (deffile, data) = ((0x4001, 0, 0, "", 0, 0), (PARTITION, 3, 3, "00", 700, 1));
        let good = sif(&[deffile, data, (PARTITION, SQUASHFS, PRIMARY_SYSTEM, arch, 1500, 500)], 4096);
        assert_eq!(system_partition(&good), Ok((1500, 500)));
        let mut unused = good.clone();
        unused[HEADER + 2 * DESCRIPTOR + 4] = 0;
        assert_eq!(system_partition(&unused), Err(SifError::NoSystem));
    }

    #[test]
    fn everything_else_is_refused() {
        let one = |fs, arch, offset, length| sif(&[(PARTITION, fs, PRIMARY_SYSTEM, arch, offset, length)], 1000);
        let length = i64::try_from(one(1, "00", 0, 0).len()).unwrap();
        let damaged = |e: &SifError| matches!(e, SifError::Damaged(_));
        assert_eq!(system_partition(&one(5, "00", 800, 9)), Err(SifError::Encrypted));
        assert_eq!(system_partition(&one(2, "00", 800, 9)), Err(SifError::NotSquashfs));
        assert_eq!(system_partition(&one(1, "99", 800, 9)), Err(SifError::Architecture("99".to_owned())));
        for (offset, size) in [(length, 1), (-1, 1), (1, -1), (i64::MAX, i64::MAX), (0, length + 1)] {
            let error = system_partition(&one(1, "00", offset, size)).unwrap_err();
            assert!(damaged(&error), "{offset} {size}: {error}");
        }
        let definition = b"bootstrap: localimage\nfrom: /\n%setup\n    touch /tmp/owned\n".repeat(8);
        assert_eq!(system_partition(&definition), Err(SifError::NotSif));
        assert_eq!(system_partition(&Vec::new()), Err(SifError::NotSif));
        let mut many = one(1, "00", 0, 0);
        many[88..96].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(damaged(&system_partition(&many).unwrap_err()));
        many[88..96].copy_from_slice(&4096u64.to_le_bytes());
        many[HEADER] = 0;
        assert!(damaged(&system_partition(&many).unwrap_err()), "the table goes beyond the end");
    }

    proptest! {
        #[test]
        fn what_is_found_is_within_the_file(flips in prop::collection::vec((0usize..HEADER + DESCRIPTOR, any::<u8>()), 0..40)) {
            let mut bytes = sif(&[(PARTITION, SQUASHFS, PRIMARY_SYSTEM, "00", 800, 100)], 1000);
            for (at, byte) in flips {
                bytes[at] = byte;
            }
            if let Ok((offset, length)) = system_partition(&bytes) {
                prop_assert!(offset + length <= bytes.len() as u64);
            }
        }
    }
}
