//! Bytes without JSON: frames of streaming requests, lines of CRI logs.
#![no_main]

use hpk_api::{cri_log, frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut again = Vec::new();
    while let Ok(Some(found)) = frame::decode(rest) {
        assert_eq!(found.consumed, frame::HEADER + found.payload.len());
        frame::encode(found.channel, found.payload, &mut again);
        rest = &rest[found.consumed..];
    }
    assert_eq!(again, bytes[..bytes.len() - rest.len()], "frames are written as they were read");
    for line in bytes.split(|b| *b == b'\n') {
        if let Some(record) = cri_log::parse(line) {
            assert!(line.ends_with(record.content) && line.starts_with(record.time));
        }
    }
});
