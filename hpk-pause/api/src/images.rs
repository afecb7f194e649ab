//! Which images pods may have, and how large: a part of `HPK_HOME/cluster.json`.

use crate::quantity;
use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// Rules for images. They hold for pulls that begin afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageRules {
    /// Folders below which `image` may name files; empty: no files at all; None: whatever a pod of the namespace may reach
    /// by hostPath too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Vec<PathBuf>>,
    /// Bytes of one image's files.
    pub max_bytes: u64,
    /// Files, folders and links of one image.
    pub max_files: u64,
    /// How images that are pulled are kept.
    pub layout: LayoutChoice,
}

/// `hpk up --image-layout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutChoice {
    /// One file on file systems that suffer from many files, else a folder.
    #[default]
    Auto,
    /// A folder with every file of the image.
    Folder,
    /// One SquashFS file.
    Squashfs,
}

impl Default for ImageRules {
    /// Generous: the largest images that are in use have a fifth of it.
    fn default() -> Self {
        Self { local: None, max_bytes: 100 << 30, max_files: 2_000_000, layout: LayoutChoice::Auto }
    }
}

/// One value of `hpk up --local-images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalChoice {
    /// The default.
    Any,
    /// No files.
    None,
    /// A folder.
    Folder(PathBuf),
}

impl ImageRules {
    /// Reads one `--local-images`.
    ///
    /// # Errors
    /// Why it cannot be one, for people.
    pub fn parse_local(text: &str) -> Result<LocalChoice, String> {
        match text {
            "any" => Ok(LocalChoice::Any),
            "none" => Ok(LocalChoice::None),
            path if is_plain(Path::new(path)) => Ok(LocalChoice::Folder(path.into())),
            _ => Err("must be any, none, or the absolute path of a folder, without `..`".to_owned()),
        }
    }

    /// What several values mean together; None: nothing was asked for.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn local_of(choices: &[LocalChoice]) -> Result<Option<Option<Vec<PathBuf>>>, String> {
        match choices {
            [] => Ok(None),
            [LocalChoice::Any] => Ok(Some(None)),
            [LocalChoice::None] => Ok(Some(Some(Vec::new()))),
            many => {
                let folders = many.iter().map(|choice| match choice {
                    LocalChoice::Folder(path) => Ok(path.clone()),
                    _ => Err("any and none go with no other value".to_owned()),
                });
                folders.collect::<Result<Vec<_>, _>>().map(|folders| Some(Some(folders)))
            }
        }
    }

    /// Reads an `--image-max-size`.
    ///
    /// # Errors
    /// Why it cannot be one, for people.
    pub fn parse_max_size(text: &str) -> Result<u64, String> {
        match quantity::value(text) {
            Some(bytes) if bytes >= 1 << 20 => Ok(bytes),
            Some(_) => Err("too small: at least 1Mi".to_owned()),
            None => Err("must be a Kubernetes quantity of bytes, such as 20Gi".to_owned()),
        }
    }

    /// Reads an `--image-max-files`.
    ///
    /// # Errors
    /// Why it cannot be one, for people.
    pub fn parse_max_files(text: &str) -> Result<u64, String> {
        match text.parse() {
            Ok(files) if files >= 100 => Ok(files),
            Ok(_) => Err("too few: at least 100".to_owned()),
            Err(_) => Err("must be a number of files, such as 500000".to_owned()),
        }
    }
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| matches!(part, Component::ParentDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_of_folders() {
        let parse = |texts: &[&str]| {
            let choices: Result<Vec<_>, _> = texts.iter().map(|t| ImageRules::parse_local(t)).collect();
            choices.and_then(|choices| ImageRules::local_of(&choices))
        };
        assert_eq!(parse(&[]), Ok(None));
        assert_eq!(parse(&["any"]), Ok(Some(None)));
        assert_eq!(parse(&["none"]), Ok(Some(Some(vec![]))));
        assert_eq!(parse(&["/a", "/b c"]), Ok(Some(Some(vec!["/a".into(), "/b c".into()]))));
        for bad in [&["a"][..], &["/a/../b"], &[""], &["any", "/a"], &["/a", "none"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_and_numbers() {
        assert_eq!(ImageRules::parse_max_size("20Gi"), Ok(20 << 30));
        assert_eq!(ImageRules::parse_max_files("100"), Ok(100));
        for bad in ["", "x", "20GB", "1k", "-1"] {
            assert!(ImageRules::parse_max_size(bad).is_err(), "{bad}");
            assert!(ImageRules::parse_max_files(bad).is_err(), "{bad}");
        }
        assert!(ImageRules::parse_max_files("99").is_err());
    }
}
