//! The protocol without I/O.

use crate::RequestError;
use bytes::{Buf, Bytes, BytesMut};
use hpk_api::control::{Answer, Greeting, MAX_LINE, Reply, Request};
use hpk_api::frame::{self, CHUNK, HEADER};
use serde::de::DeserializeOwned;

/// The lines that begin a connection: hello and request.
pub(crate) fn opening(request: &Request) -> Result<Vec<u8>, RequestError> {
    let nonsense = |error: serde_json::Error| RequestError::Protocol(error.to_string());
    let mut lines = serde_json::to_vec(&Greeting::Hello { version: hpk_api::VERSION }).map_err(nonsense)?;
    lines.push(b'\n');
    serde_json::to_writer(&mut lines, request).map_err(nonsense)?;
    lines.push(b'\n');
    Ok(lines)
}

/// One payload as frames of the usual size.
pub(crate) fn frames(channel: u8, payload: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    // An empty payload is a frame, too.
    let parts = payload.chunks(CHUNK).chain(payload.is_empty().then_some(payload));
    parts.map(move |part| {
        let mut wire = Vec::with_capacity(HEADER + part.len());
        frame::encode(channel, part, &mut wire);
        wire
    })
}

/// What has come and was not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// So many bytes hold no end of a line.
    searched: usize,
}

impl Decoder {
    /// Where new bytes are appended, with room for some.
    pub(crate) fn space(&mut self) -> &mut BytesMut {
        self.buffer.reserve(HEADER + CHUNK);
        &mut self.buffer
    }

    /// Nothing is left over. At the end of a connection the opposite means that it was cut.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next line; None: more bytes are needed.
    pub(crate) fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RequestError> {
        let Some(at) = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                return Err(RequestError::Protocol("a line is too long".to_owned()));
            }
            return Ok(None);
        };
        let line = self.buffer.split_to(self.searched + at + 1);
        self.searched = 0;
        serde_json::from_slice(&line).map(Some).map_err(|error| RequestError::Protocol(error.to_string()))
    }

    /// The answer to the request; None: more bytes are needed.
    pub(crate) fn answer(&mut self) -> Result<Option<Answer>, RequestError> {
        match self.line()? {
            Some(Reply::Ok(answer)) => Ok(Some(answer)),
            Some(Reply::Error(error)) => Err(RequestError::Refused(error)),
            None => Ok(None),
        }
    }

    /// The next frame, channel and payload; None: more bytes are needed.
    pub(crate) fn frame(&mut self) -> Result<Option<(u8, Bytes)>, RequestError> {
        let found = frame::decode(&self.buffer).map_err(|error| RequestError::Protocol(error.to_string()))?;
        let Some((channel, length)) = found.map(|found| (found.channel, found.consumed)) else { return Ok(None) };
        let mut whole = self.buffer.split_to(length);
        whole.advance(HEADER);
        Ok(Some((channel, whole.freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_and_frames_survive_any_split(
            lines in prop::collection::vec(any::<u64>(), 0..4),
            sent in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1usize..64, 1..32),
        ) {
            let mut bytes: Vec<u8> = lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            bytes.extend(sent.iter().flat_map(|(channel, payload)| frames(*channel, payload)).flatten());
            let (mut decoder, mut found_lines, mut found) = (Decoder::default(), Vec::new(), Vec::new());
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            loop {
                while found_lines.len() < lines.len()
                    && let Some(line) = decoder.line::<u64>().unwrap()
                {
                    found_lines.push(line);
                }
                while found_lines.len() == lines.len()
                    && let Some((channel, payload)) = decoder.frame().unwrap()
                {
                    found.push((channel, payload.to_vec()));
                }
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                decoder.space().extend_from_slice(part);
                rest = after;
            }
            prop_assert_eq!((found_lines, found), (lines, sent));
            prop_assert!(decoder.is_empty());
        }
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_kept() {
        let mut decoder = Decoder::default();
        decoder.space().extend_from_slice(&vec![b' '; MAX_LINE + 1]);
        assert!(matches!(decoder.line::<u64>(), Err(RequestError::Protocol(_))));
        let mut decoder = Decoder::default();
        decoder.space().extend_from_slice(&[1, 0xff, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.frame(), Err(RequestError::Protocol(_))));
    }
}
