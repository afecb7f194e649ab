//! Variables whose values lie in files of the pod's emptyDirs, read when a container is about to start.
//!
//! Those files were written by containers: they are reached without following a link, and only so many bytes are read.

use crate::paths::Paths;
use hpk_api::plan::{FileKey, file_key_placeholder};
use hpk_core::env_file;
use std::io::ErrorKind;
use std::path::Path;

/// What the file may have at most, in bytes.
const MOST: u64 = 1 << 20;

/// A variable that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("env[{variable}].valueFrom.fileKeyRef: file {path:?} of volume {volume:?}{why}")]
pub(crate) struct FileKeyError {
    variable: String,
    path: String,
    volume: String,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error(": {0}")]
    Read(std::io::Error),
    #[error(" is not UTF-8 text")]
    NotText,
    #[error(" holds a NUL, which no variable can")]
    Nul,
    #[error(": {0}")]
    Line(env_file::EnvFileError),
    #[error(" does not set {0:?}")]
    NoKey(String),
}

/// The values of one container's [`FileKey`]s, in their order; None: optional, and missing.
#[derive(Debug, Default)]
pub(crate) struct FileValues(Vec<(FileKey, Option<String>)>);

impl FileValues {
    /// Reads them.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub(crate) fn read(keys: &[FileKey], paths: &Paths) -> Result<Self, FileKeyError> {
        let read = |key: &FileKey| {
            let value = read(key, &paths.empty_dir(&key.volume)).map_err(|why| {
                let FileKey { variable, path, volume, .. } = key.clone();
                FileKeyError { variable, path, volume, why }
            })?;
            Ok((key.clone(), value))
        };
        keys.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Puts the values where the plan could not know them. A reference to a variable that is missing stays as it was
    /// written, as any reference to an unknown variable does.
    #[must_use]
    pub(crate) fn fill(&self, mut text: String) -> String {
        if !text.contains('\0') {
            return text;
        }
        for (index, (key, value)) in self.0.iter().enumerate() {
            let reference = format!("$({})", key.variable);
            let value = value.as_ref().or(key.otherwise.as_ref()).unwrap_or(&reference);
            text = text.replace(&file_key_placeholder(index), value);
        }
        text
    }

    /// Whether `value` stands for a variable that is to be left out.
    #[must_use]
    pub(crate) fn leaves_out(&self, value: &str) -> bool {
        let mut all = self.0.iter().enumerate();
        all.any(|(index, (key, found))| {
            found.is_none() && key.otherwise.is_none() && value == file_key_placeholder(index)
        })
    }
}

fn read(key: &FileKey, volume: &Path) -> Result<Option<String>, Why> {
    let bytes = match hpk_sys::beneath::read(volume, Path::new(&key.path), MOST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound && key.optional => return Ok(None),
        Err(error) => return Err(Why::Read(error)),
    };
    let text = String::from_utf8(bytes).map_err(|_| Why::NotText)?;
    if text.contains('\0') {
        return Err(Why::Nul);
    }
    match env_file::value(&text, &key.key).map_err(Why::Line)? {
        None if !key.optional => Err(Why::NoKey(key.key.clone())),
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(variable: &str, of: &str, optional: bool, otherwise: Option<&str>) -> FileKey {
        let (volume, path) = ("config".to_owned(), "d/app.env".to_owned());
        let otherwise = otherwise.map(str::to_owned);
        FileKey { variable: variable.to_owned(), volume, path, key: of.to_owned(), optional, otherwise }
    }

    fn written(text: &[u8]) -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { scratch: dir.path().into(), ..Paths::default() };
        let folder = paths.empty_dir("config").join("d");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("app.env"), text).unwrap();
        (dir, paths)
    }

    #[test]
    fn values_go_where_their_marks_are() {
        let (_dir, paths) = written(b"A='1'\nB='two words'\n");
        let keys = [key("X", "B", false, None), key("Y", "no", true, None), key("Z", "no", true, Some("before"))];
        let values = FileValues::read(&keys, &paths).unwrap();
        let [x, y, z] = [0, 1, 2].map(file_key_placeholder);
        assert_eq!(values.fill(format!("{x}-{y}-{z}")), "two words-$(Y)-before");
        assert_eq!(values.fill("plain".to_owned()), "plain");
        assert_eq!([&x, &y, &z].map(|mark| values.leaves_out(mark)), [false, true, false]);
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let (dir, paths) = written(b"A='1'\n");
        let refused = |key: FileKey| FileValues::read(&[key], &paths).unwrap_err().to_string();
        let of = "env[X].valueFrom.fileKeyRef: file \"d/app.env\" of volume \"config\"";
        assert_eq!(refused(key("X", "B", false, None)), format!("{of} does not set \"B\""));
        let file = paths.empty_dir("config").join("d/app.env");
        std::fs::write(&file, b"A=1").unwrap();
        assert_eq!(refused(key("X", "A", true, None)), format!("{of}: line 1: the value is not in single quotes"));
        std::fs::write(&file, b"A='\0'").unwrap();
        assert_eq!(refused(key("X", "A", true, None)), format!("{of} holds a NUL, which no variable can"));
        // A container cannot lead the supervisor to another file.
        std::fs::write(dir.path().join("secret"), "A='1'").unwrap();
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), &file).unwrap();
        assert!(refused(key("X", "A", true, None)).starts_with(of));
        std::fs::remove_file(&file).unwrap();
        assert!(refused(key("X", "A", false, None)).contains("No such file"));
        assert!(FileValues::read(&[key("X", "A", true, None)], &paths).is_ok());
    }
}
