//! What all of it is read with: little-endian numbers, compressed blocks, and why a file system cannot be read.

use std::io::{self, Read};

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

pub(super) type Result<T> = std::result::Result<T, SquashError>;

/// Memory for one zstd block.
const MAX_WINDOW: u64 = 8 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compressor {
    Gzip,
    Lz4,
    Zstd,
}

impl Compressor {
    pub(super) fn of(id: u16) -> Result<Self> {
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
    pub(super) fn expand(self, packed: &[u8], most: usize) -> Result<Vec<u8>> {
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

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
