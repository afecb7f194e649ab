//! The lines of the control socket and of the link.
#![no_main]

use hpk_api::control::{Greeting, Reply, Request, StreamEnd, TerminalSize};
use hpk_api::link::{NetQuestion, NetUpdate, StreamOpen};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&value).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<T>(&text).expect("and read again"), value);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<Greeting>(bytes);
    check::<Request>(bytes);
    check::<Reply>(bytes);
    check::<StreamEnd>(bytes);
    check::<TerminalSize>(bytes);
    check::<StreamOpen>(bytes);
    check::<NetQuestion>(bytes);
    check::<NetUpdate>(bytes);
});
