//! plan.json and status.json: what is accepted can be written and read again without loss.
#![no_main]

use hpk_api::plan::SandboxPlan;
use hpk_api::state::{LaunchReport, PodState};
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
    check::<SandboxPlan>(bytes);
    check::<PodState>(bytes);
    check::<LaunchReport>(bytes);
});
