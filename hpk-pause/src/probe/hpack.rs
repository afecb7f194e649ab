//! HPACK (RFC 7541) as far as one request needs it: literals out; static entries and literals in.
//!
//! We announce a dynamic table of size 0, so a peer may not use one, and a reference to it is an error.

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Code lengths of RFC 7541, appendix B, by byte. The code is canonical, so that lengths say all.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26,
];

const SHORTEST: u8 = 5;
const LONGEST: u8 = 28 + 2;

/// Appends a header as a literal that is not to be indexed. Names and values shorter than 127 bytes take one byte of
/// length; longer ones are written with continuation bytes.
pub(super) fn encode(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(0);
    for text in [name, value] {
        integer(text.len(), out);
        out.extend_from_slice(text.as_bytes());
    }
}

fn integer(value: usize, out: &mut Vec<u8>) {
    const MAX: usize = 0x7f;
    if value < MAX {
        out.push(u8::try_from(value).unwrap_or(0));
        return;
    }
    out.push(0x7f);
    let mut rest = value - MAX;
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or(0));
}

/// Decodes a header block; None when it is malformed.
pub(super) fn decode(mut block: &[u8]) -> Option<Vec<(String, String)>> {
    let mut headers = Vec::new();
    while let Some(&first) = block.first() {
        if first & 0x80 != 0 {
            let index = take_integer(&mut block, 7)?;
            let (name, value) = STATIC.get(index.checked_sub(1)?)?;
            headers.push(((*name).to_owned(), (*value).to_owned()));
            continue;
        }
        if first & 0xe0 == 0x20 {
            // Size of the dynamic table: ours is 0.
            take_integer(&mut block, 5)?;
            continue;
        }
        let index = take_integer(&mut block, if first & 0xc0 == 0x40 { 6 } else { 4 })?;
        let name = match index {
            0 => take_text(&mut block)?,
            index => STATIC.get(index - 1)?.0.to_owned(),
        };
        headers.push((name, take_text(&mut block)?));
    }
    Some(headers)
}

fn take_integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let mask = (1usize << bits) - 1;
    let mut next = || {
        let (&byte, rest) = block.split_first()?;
        *block = rest;
        Some(usize::from(byte))
    };
    let mut value = next()? & mask;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take_text(block: &mut &[u8]) -> Option<String> {
    let huffman = block.first()? & 0x80 != 0;
    let length = take_integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    let bytes = if huffman { unhuffman(text)? } else { text.to_vec() };
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Decodes Huffman code bit by bit: headers of a health check are few and short.
fn unhuffman(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut code, mut length) = (0u32, 0u8);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)) {
        code = code << 1 | u32::from(bit);
        length += 1;
        if length > LONGEST {
            return None;
        }
        if let Some(symbol) = symbol(code, length) {
            out.push(symbol);
            (code, length) = (0, 0);
        }
    }
    // What is left is padding: fewer than eight ones.
    (length < 8 && code == (1u32 << length) - 1).then_some(out)
}

/// The byte of a code word of this length, if it is one: the canonical code counts up within each length.
fn symbol(code: u32, length: u8) -> Option<u8> {
    let mut first = 0u32;
    for shorter in SHORTEST..length {
        first = (first + count(shorter)) << 1;
    }
    let index = usize::try_from(code.checked_sub(first)?).ok()?;
    (0..=255u8).filter(|byte| LENGTHS[usize::from(*byte)] == length).nth(index)
}

fn count(length: u8) -> u32 {
    LENGTHS.iter().map(|l| u32::from(*l == length)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        text.split_whitespace()
            .flat_map(|w| {
                (0..w.len() / 2).map(|n| u8::from_str_radix(&w[2 * n..2 * n + 2], 16).unwrap()).collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn examples_of_the_rfc() {
        // C.4.1's and C.6.1's strings.
        assert_eq!(unhuffman(&hex("f1e3 c2e5 f23a 6ba0 ab90 f4ff")).unwrap(), b"www.example.com");
        assert_eq!(
            unhuffman(&hex("d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff")).unwrap(),
            b"Mon, 21 Oct 2013 20:13:21 GMT"
        );
        // C.2.1, C.2.4.
        let expected = vec![("custom-key".to_owned(), "custom-header".to_owned())];
        assert_eq!(decode(&hex("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572")).unwrap(), expected);
        assert_eq!(decode(&hex("88")).unwrap(), vec![(":status".to_owned(), "200".to_owned())]);
        assert_eq!(decode(&hex("be")), None);
    }

    proptest! {
        #[test]
        fn literals_round_trip(headers in prop::collection::vec(("[a-z-]{1,40}", "[ -~]{0,400}"), 0..5)) {
            let mut block = Vec::new();
            for (name, value) in &headers {
                encode(name, value, &mut block);
            }
            prop_assert_eq!(decode(&block).unwrap(), headers);
        }

        #[test]
        fn total(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
            let _ = unhuffman(&bytes);
        }
    }
}
