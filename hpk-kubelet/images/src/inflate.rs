//! A layer's bytes on their way from the file to the tar reader: hashed as they are stored, inflated, and counted.
//!
//! What was unpacked is what was hashed: a layer that is exchanged between a check and its unpacking does not pass.

use crate::blobs::hex;
use crate::manifest::Compression;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, BufReader, Read};
use std::rc::Rc;

/// Largest window of a zstd frame that is given memory (the largest that `zstd` itself takes without being asked).
const MAX_WINDOW: u64 = 128 << 20;
const BUFFER: usize = 1 << 18;

/// The layer as stored; hashes what is read.
struct Stored<R> {
    inner: R,
    hash: Sha256,
}

/// Read by whoever inflates, and then to its end by [`Source::digest`].
struct Shared<R>(Rc<RefCell<Stored<R>>>);

impl<R: Read> Read for Shared<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stored = self.0.borrow_mut();
        let n = stored.inner.read(buffer)?;
        stored.hash.update(&buffer[..n]);
        Ok(n)
    }
}

/// The inflated bytes of a layer.
pub(crate) struct Inflated {
    plain: Box<dyn Read>,
    /// Bytes that may still come.
    left: u64,
    fault: Rc<Cell<Option<Fault>>>,
}

/// Why no more bytes come. The tar reader words an error of its source its own way; this is what happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The limit is reached.
    TooLong,
    /// The file cannot be read.
    Io(i32),
    /// The compressed data is wrong.
    Damaged,
}

/// What remains of a layer when the tar reader is done with it.
pub(crate) struct Source<R> {
    stored: Rc<RefCell<Stored<R>>>,
    fault: Rc<Cell<Option<Fault>>>,
}

/// Opens a layer, whatever its compression. `limit`: most bytes that it may inflate to.
pub(crate) fn open<R: Read + 'static>(layer: R, limit: u64) -> io::Result<(Inflated, Source<R>)> {
    let shared = Rc::new(RefCell::new(Stored { inner: layer, hash: Sha256::new() }));
    let mut stored = BufReader::with_capacity(BUFFER, Shared(shared.clone()));
    let plain: Box<dyn Read> = match Compression::sniff(stored.fill_buf()?) {
        Compression::None => Box::new(stored),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Compression::Zstd => Box::new(BufReader::with_capacity(BUFFER, Frames { state: State::Between(stored) })),
    };
    let fault = Rc::new(Cell::new(None));
    Ok((Inflated { plain, left: limit, fault: fault.clone() }, Source { stored: shared, fault }))
}

impl<R: Read> Source<R> {
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// The digest of the layer as stored. Reads what follows the end of the tar: it belongs to the layer too.
    pub(crate) fn digest(self) -> io::Result<String> {
        io::copy(&mut Shared(self.stored.clone()), &mut io::sink())?;
        Ok(hex(&self.stored.borrow_mut().hash.finalize_reset()))
    }
}

impl Inflated {
    /// How many more bytes may come.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = self.plain.read(buffer);
        let fault = match &result {
            Ok(n) if *n as u64 > self.left => Fault::TooLong,
            Ok(n) => {
                self.left -= *n as u64;
                return result;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return result,
            Err(e) => e.raw_os_error().map_or(Fault::Damaged, Fault::Io),
        };
        self.fault.set(Some(fault));
        Err(io::Error::other("no more of the layer can be read"))
    }
}

/// Zstd data of several frames, skippable ones among them, as one stream (RFC 8878, 3.1).
struct Frames<R: BufRead> {
    state: State<R>,
}

enum State<R: BufRead> {
    Between(R),
    Within(Box<StreamingDecoder<R, FrameDecoder>>),
    /// Only while one becomes the other, and after an error.
    Gone,
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Gone) {
                State::Within(mut decoder) => {
                    let n = decoder.read(buffer)?;
                    self.state = if n > 0 { State::Within(decoder) } else { State::Between(decoder.into_inner()) };
                    if n > 0 {
                        return Ok(n);
                    }
                }
                State::Between(mut stored) => {
                    if stored.fill_buf()?.is_empty() {
                        self.state = State::Between(stored);
                        return Ok(0);
                    }
                    self.state = match skippable(&mut stored)? {
                        true => State::Between(stored),
                        false => State::Within(Box::new(
                            StreamingDecoder::new_with_max_window_size(stored, MAX_WINDOW).map_err(io::Error::other)?,
                        )),
                    };
                }
                State::Gone => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

/// Skips a skippable frame, if one is next: its magic number, its length and so many bytes.
fn skippable<R: BufRead>(stored: &mut R) -> io::Result<bool> {
    // The magic number's first byte tells it from a frame's; the rest must then be right.
    if !matches!(stored.fill_buf()?.first(), Some(0x50..=0x5f)) {
        return Ok(false);
    }
    let mut head = [0; 8];
    stored.read_exact(&mut head)?;
    if head[1..4] != [0x2a, 0x4d, 0x18] {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let length = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
    let skipped = io::copy(&mut stored.by_ref().take(length), &mut io::sink())?;
    if skipped == length { Ok(true) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;

    fn inflate(bytes: Vec<u8>, limit: u64) -> (Result<Vec<u8>, Option<Fault>>, String) {
        let (mut inflated, source) = open(io::Cursor::new(bytes), limit).unwrap();
        let mut plain = Vec::new();
        let result = inflated.read_to_end(&mut plain);
        let fault = source.fault();
        (result.map(|_| plain).map_err(|_| fault), source.digest().unwrap())
    }

    fn frame(text: &str) -> Vec<u8> {
        compress_to_vec(text.as_bytes(), CompressionLevel::Fastest)
    }

    #[test]
    fn several_frames_are_one_stream() {
        let skip = |n: u8| [&[0x50, 0x2a, 0x4d, 0x18, n, 0, 0, 0][..], &vec![7; usize::from(n)]].concat();
        let all = [skip(3), frame("one "), frame(""), frame("two "), skip(0), frame("three"), skip(9)].concat();
        let (plain, digest) = inflate(all.clone(), 100);
        assert_eq!(plain.unwrap(), b"one two three");
        assert_eq!(digest, crate::blobs::digest_of(&all));
        let (cut, _) = inflate([frame("one "), skip(3)[..9].to_vec()].concat(), 100);
        assert_eq!(cut, Err(Some(Fault::Damaged)));
        let (garbage, _) = inflate([frame("one "), b"garbage".to_vec()].concat(), 100);
        assert_eq!(garbage, Err(Some(Fault::Damaged)));
    }

    #[test]
    fn members_of_gzip_are_one_stream() {
        let member = |text: &str| {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(text.as_bytes()).unwrap();
            out.finish().unwrap()
        };
        assert_eq!(inflate([member("a"), member("b")].concat(), 10).0.unwrap(), b"ab");
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let zeros = "0".repeat(1 << 20);
        assert_eq!(inflate(frame(&zeros), 1 << 20).0.map(|p| p.len()), Ok(1 << 20));
        assert_eq!(inflate(frame(&zeros), (1 << 20) - 1).0, Err(Some(Fault::TooLong)));
        assert_eq!(inflate(b"plain".to_vec(), 4).0, Err(Some(Fault::TooLong)));
    }
}
