//! `image` of a container: any text is understood or refused, and what is understood names the same image again.
#![no_main]

#[allow(dead_code)]
#[path = "../../../hpk-kubelet/images/src/reference.rs"]
mod reference;

use libfuzzer_sys::fuzz_target;
use reference::Source;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(source) = Source::parse(text) else { return };
    let whole = source.normalized();
    assert_eq!(Source::parse(&whole).as_ref(), Ok(&source), "{text:?} is {whole:?}");
    if !source.is_local() {
        // It becomes a part of addresses and of file names.
        assert!(!whole.contains([' ', '\n', '\0', '?', '#', '%']) && !source.registry().contains('/'), "{whole:?}");
    }
});
