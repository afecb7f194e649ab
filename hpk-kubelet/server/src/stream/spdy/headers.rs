//! Header blocks: name/value pairs, zlib with a fixed dictionary, one compression context per direction.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// SPDY/3's dictionary (specification, section 2.6.10.1).
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Largest decompressed header block, bytes; Kubernetes' are a few hundred.
const MAX_BLOCK: usize = 64 << 10;

/// Names (lower case) and values.
pub(crate) type Headers = Vec<(String, String)>;

/// A header block that cannot be read or written. The compression context is lost: the connection must end.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HeaderError {
    #[error("SPDY header block cannot be decompressed")]
    Zlib,
    #[error("SPDY header block is larger than {MAX_BLOCK} bytes")]
    TooLarge,
    #[error("SPDY header block is malformed")]
    Malformed,
}

/// First value of a header.
pub(crate) fn get<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

/// Inflates the blocks of one direction.
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(crate) fn block(&mut self, mut input: &[u8]) -> Result<Headers, HeaderError> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() > MAX_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            plain.reserve(1024);
            let (read, written) = (self.0.total_in(), self.0.total_out());
            match self.0.decompress_vec(input, &mut plain, FlushDecompress::Sync) {
                Err(e) if e.needs_dictionary().is_some() => {
                    let used = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
                    input = input.get(used..).ok_or(HeaderError::Zlib)?;
                    self.0.set_dictionary(DICTIONARY).map_err(|_| HeaderError::Zlib)?;
                    continue;
                }
                Err(_) => return Err(HeaderError::Zlib),
                Ok(Status::Ok | Status::BufError | Status::StreamEnd) => {}
            }
            let used = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            input = input.get(used..).ok_or(HeaderError::Zlib)?;
            // Everything is out when the input is used up and the last call left room in the buffer.
            if input.is_empty() && plain.len() < plain.capacity() {
                return parse(&plain);
            }
            if self.0.total_out() == written && used == 0 {
                return Err(HeaderError::Zlib);
            }
        }
    }
}

/// Deflates the blocks of one direction.
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Result<Self, HeaderError> {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(DICTIONARY).map_err(|_| HeaderError::Zlib)?;
        Ok(Self(compress))
    }

    pub(crate) fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, HeaderError> {
        let plain = serialize(headers)?;
        let mut input = &plain[..];
        let mut out = Vec::with_capacity(plain.len() + 64);
        loop {
            out.reserve(256);
            let read = self.0.total_in();
            self.0.compress_vec(input, &mut out, FlushCompress::Sync).map_err(|_| HeaderError::Zlib)?;
            let used = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            input = input.get(used..).ok_or(HeaderError::Zlib)?;
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

fn serialize(headers: &Headers) -> Result<Vec<u8>, HeaderError> {
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>, n: usize| -> Result<(), HeaderError> {
        out.extend_from_slice(&u32::try_from(n).map_err(|_| HeaderError::TooLarge)?.to_be_bytes());
        Ok(())
    };
    put(&mut out, headers.len())?;
    for (name, value) in headers {
        for text in [name, value] {
            put(&mut out, text.len())?;
            out.extend_from_slice(text.as_bytes());
        }
    }
    Ok(out)
}

fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
    fn number(block: &mut &[u8]) -> Result<usize, HeaderError> {
        let (head, rest) = block.split_first_chunk::<4>().ok_or(HeaderError::Malformed)?;
        *block = rest;
        Ok(u32::from_be_bytes(*head) as usize)
    }
    fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
        let length = number(block)?;
        let (head, rest) = block.split_at_checked(length).ok_or(HeaderError::Malformed)?;
        *block = rest;
        Ok(String::from_utf8_lossy(head).into_owned())
    }
    let count = number(&mut block)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(&mut block)?;
        let values = text(&mut block)?;
        // Several values of one name are joined by NUL.
        headers.extend(values.split('\0').map(|v| (name.to_lowercase(), v.to_owned())));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        // Adler-32 that every SPDY/3 stream carries as its dictionary id.
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn bombs_and_garbage_are_refused() {
        let mut deflater = Deflater::new().unwrap();
        let bomb = deflater.block(&vec![("a".to_owned(), "x".repeat(MAX_BLOCK * 4))]).unwrap();
        assert_eq!(Inflater::new().block(&bomb), Err(HeaderError::TooLarge));
        assert!(Inflater::new().block(b"garbage").is_err());
        assert!(Inflater::new().block(b"").is_err());
    }

    fn header() -> impl Strategy<Value = (String, String)> {
        ("[a-z][a-z-]{0,20}", "[ -~]{0,200}")
    }

    proptest! {
        #[test]
        fn blocks_round_trip_in_one_context(
            blocks in prop::collection::vec(prop::collection::vec(header(), 0..12), 1..6)
        ) {
            let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
            for block in blocks {
                let wire = deflater.block(&block).unwrap();
                prop_assert_eq!(inflater.block(&wire).unwrap(), block);
            }
        }

        #[test]
        fn any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = Inflater::new().block(&bytes);
        }
    }
}
