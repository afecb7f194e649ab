//! Files of JSON below HPK_HOME.

use crate::home::replace_file;
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use std::path::Path;

/// None: there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => {
            let read = serde_json::from_slice(&text);
            read.map(Some).with_context(|| format!("{} is damaged", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// What an earlier `hpk up` wrote.
pub(crate) fn need_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let context = || format!("{}: run hpk up", path.display());
    serde_json::from_slice(&std::fs::read(path).with_context(context)?).with_context(context)
}

pub(crate) fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    replace_file(path, &json)?;
    Ok(())
}
