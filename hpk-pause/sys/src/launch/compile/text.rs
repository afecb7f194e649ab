//! Text of a spec as the C strings that system calls take.

use crate::error::LaunchError;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

pub(crate) fn c(field: &'static str, text: impl AsRef<OsStr>) -> Result<CString, LaunchError> {
    let text = text.as_ref();
    CString::new(text.as_bytes()).map_err(|_| LaunchError::Invalid {
        field,
        reason: format!(
            "{:?} contains a NUL character, which no program can be given; remove it",
            text.to_string_lossy()
        ),
    })
}

pub(super) fn c_opt(field: &'static str, text: &str) -> Result<Option<CString>, LaunchError> {
    c(field, text).map(Some)
}
