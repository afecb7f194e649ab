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

/// The values of one container's [`FileKey`]s, in their order; None: optional, and missing.
#[derive(Debug, Default)]
pub(crate) struct FileValues(Vec<(FileKey, Option<String>)>);

impl FileValues {
    /// Reads them.
    ///
    /// # Errors
    /// Which variable cannot be had, and why.
    pub(crate) fn read(keys: &[FileKey], paths: &Paths) -> Result<Self, String> {
        let read = |key: &FileKey| Ok((key.clone(), read(key, &paths.empty_dir(&key.volume))?));
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

fn read(key: &FileKey, volume: &Path) -> Result<Option<String>, String> {
    let FileKey { variable, path, volume: name, .. } = key;
    let of = format!("env[{variable}].valueFrom.fileKeyRef: file {path:?} of volume {name:?}");
    let bytes = match hpk_sys::beneath::read(volume, Path::new(path), MOST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound && key.optional => return Ok(None),
        Err(error) => return Err(format!("{of}: {error}")),
    };
    let text = String::from_utf8(bytes).map_err(|_| format!("{of} is not UTF-8 text"))?;
    if text.contains('\0') {
        return Err(format!("{of} holds a NUL, which no variable can"));
    }
    match env_file::value(&text, &key.key).map_err(|error| format!("{of}: {error}"))? {
        None if !key.optional => Err(format!("{of} does not set {:?}", key.key)),
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
        let refused = |key: FileKey| FileValues::read(&[key], &paths).unwrap_err();
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
