//! Answers of name servers to the supervisor, which has probes by name: any bytes are read or refused.
#![no_main]

#[allow(dead_code)]
#[path = "../../../hpk-pause/src/probe"]
mod probe {
    pub mod resolve;

    pub mod text {
        pub fn errno(error: &std::io::Error) -> String {
            error.to_string()
        }
    }

    pub fn addresses(id: u16, message: &[u8]) -> Option<Vec<std::net::IpAddr>> {
        resolve::addresses(id, message)
    }
}

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((id, message)) = bytes.split_first_chunk::<2>() else { return };
    let found = probe::addresses(u16::from_be_bytes(*id), message);
    // A record takes more bytes than its address.
    assert!(found.is_none_or(|found| found.len() * 4 <= message.len()));
});
