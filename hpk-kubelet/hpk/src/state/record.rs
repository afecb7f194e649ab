//! Which data is the cluster's: `HPK_HOME/etcd-snapshots/record.json`, and the generation beside each data folder.

use crate::home::replace_file;
use crate::json::{read_json, write_json};
use anyhow::{Context, Result};
use hpk_layout::Home;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A number that grows whenever data is taken over from elsewhere. 0: never.
pub(crate) type Generation = u64;

/// What HPK_HOME knows of the data. Absent: the data has always been in HPK_HOME.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// That of the cluster's data.
    pub generation: Generation,
    /// The folder of the login node's own disk below which it lies; None: in HPK_HOME.
    pub base: Option<PathBuf>,
    /// The login node that has it, for people.
    pub host: String,
}

impl Record {
    /// None: there is none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn read(home: &Home) -> Result<Option<Self>> {
        read_json(&home.etcd_record()).context("which data of etcd's is the cluster's cannot be told")
    }

    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, home: &Home) -> Result<()> {
        crate::home::private_dir(&home.etcd_snapshots())?;
        write_json(&home.etcd_record(), self)
    }
}

/// The file beside a data folder that holds its generation: etcd wants its folder to itself.
pub(super) fn beside(data: &Path) -> PathBuf {
    data.with_added_extension("generation")
}

/// The generation of a data folder; None: there is no data in it.
///
/// # Errors
/// The file is there and cannot be read.
pub(crate) fn generation_of(data: &Path) -> Result<Option<Generation>> {
    if !data.join("member/snap/db").exists() {
        return Ok(None);
    }
    Ok(Some(written(data)?.unwrap_or(0)))
}

/// Whether a data folder was made ready in a generation, and holds no data.
///
/// # Errors
/// The file is there and cannot be read.
pub(crate) fn is_unused(data: &Path, generation: Generation) -> Result<bool> {
    Ok(generation_of(data)?.is_none() && written(data)? == Some(generation))
}

fn written(data: &Path) -> Result<Option<Generation>> {
    match std::fs::read_to_string(beside(data)) {
        Ok(text) => text.trim().parse().map(Some).with_context(|| format!("{} is damaged", beside(data).display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| beside(data).display().to_string()),
    }
}

/// Tells who cleans folders by the age of files that a data folder is in use.
///
/// # Errors
/// The file system's.
pub(crate) fn touch(data: &Path) -> std::io::Result<()> {
    let now = std::fs::FileTimes::new().set_accessed(std::time::SystemTime::now());
    let mut folders = vec![data.to_owned()];
    std::fs::File::open(beside(data))?.set_times(now)?;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
            if kind.is_dir() {
                folders.push(path);
            } else if let Err(error) = std::fs::File::open(&path).and_then(|file| file.set_times(now))
                // etcd removes files of its own.
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// # Errors
/// The file system's.
pub(crate) fn set_generation(data: &Path, generation: Generation) -> Result<()> {
    Ok(replace_file(&beside(data), generation.to_string().as_bytes())?)
}
