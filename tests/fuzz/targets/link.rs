//! What comes over a link before and after its hello: any bytes are read or refused, and what is read is written without loss.
#![no_main]

use hpk_api::link::{Hello, LinkCredentials, NetQuestion, NetUpdate, Welcome};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn check<T: Serialize + DeserializeOwned + Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&value).expect("what was read can be written");
        let again = serde_json::from_slice::<T>(&text).expect("and read again");
        assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<Hello>(bytes);
    check::<Welcome>(bytes);
    check::<NetQuestion>(bytes);
    check::<NetUpdate>(bytes);
    check::<LinkCredentials>(bytes);
});
