//! An application's bundle: a folder, or a tar of one, with `manifest.yaml`, `images/` and `bin/`.
//!
//! It is copied below HPK_HOME, for pods read images from there whenever they start.

use crate::home::{private_dir, replace_file};
use crate::install::catalog::App;
use anyhow::{Context, Result, bail, ensure};
use hpk_layout::app as app_file;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// What is below a bundle at most: one that is not a bundle should not fill the home.
const MOST_FILES: usize = 10_000;

/// Brings the bundle at `from` into the folder `to`, which is made anew, and checks its manifest.
///
/// # Errors
/// When it is no bundle of this application, or the file system's.
pub(super) fn bring(app: &App, from: &Path, to: &Path) -> Result<()> {
    remove(to)?;
    private_dir(to)?;
    let unpacked = to.join(".tar");
    let meta = fs::metadata(from).with_context(|| format!("--from {}", from.display()))?;
    let root = if meta.is_file() {
        private_dir(&unpacked)?;
        let tar = Command::new("tar").arg("-xf").arg(from).arg("-C").arg(&unpacked).output().context("tar")?;
        ensure!(tar.status.success(), "{}: {}", from.display(), String::from_utf8_lossy(&tar.stderr).trim());
        unpacked.join(app.bundle())
    } else {
        from.to_owned()
    };
    let manifest = root.join(app_file::MANIFEST);
    let content = match fs::read(&manifest) {
        Ok(content) => content,
        Err(e) if e.kind() == ErrorKind::NotFound => bail!(
            "{} is no bundle of {}: it has no {}manifest.yaml",
            from.display(),
            app.bundle(),
            if meta.is_file() { format!("{}/", app.bundle()) } else { String::new() }
        ),
        Err(e) => return Err(e).with_context(|| manifest.display().to_string()),
    };
    let sum = hex(&Sha256::digest(&content));
    ensure!(
        sum == app.manifest_sha256,
        "{}: its SHA-256 is {sum}, that of {} is {}: the bundle is damaged, or of another version",
        manifest.display(),
        app.bundle(),
        app.manifest_sha256
    );
    replace_file(&to.join(app_file::MANIFEST), &content)?;
    let mut left = MOST_FILES;
    for image in &app.images {
        let at = root.join(app_file::IMAGES).join(&image.name);
        ensure!(at.join("index.json").is_file(), "{}: it has no image {}", from.display(), at.display());
        copy(&at, &to.join(app_file::IMAGES).join(&image.name), &mut left)?;
    }
    for program in &app.programs {
        private_dir(&to.join(app_file::BIN))?;
        let (source, target) =
            (root.join(app_file::BIN).join(&program.name), to.join(app_file::BIN).join(&program.name));
        fs::copy(&source, &target).with_context(|| source.display().to_string())?;
    }
    remove(&unpacked)
}

/// Copies folders and regular files. A link or a device has no place in a bundle.
fn copy(from: &Path, to: &Path, left: &mut usize) -> Result<()> {
    private_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        *left = left.checked_sub(1).with_context(|| format!("{}: more than {MOST_FILES} files", from.display()))?;
        if kind.is_dir() {
            copy(&path, &target, left)?;
        } else if kind.is_file() {
            fs::copy(&path, &target).with_context(|| path.display().to_string())?;
        } else {
            bail!("{}: neither a file nor a folder", path.display());
        }
    }
    Ok(())
}

/// Removes a folder that may not be there.
///
/// # Errors
/// The file system's.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).with_context(|| folder.display().to_string()),
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn app(content: &str) -> App {
        serde_json::from_value(json!({
            "name": "x", "title": "X", "version": "v1", "namespace": "x", "manifest_sha256": hex(&Sha256::digest(content)),
            "images": [{"name": "one", "upstream": "quay.io/x/one"}], "programs": [{"name": "x"}],
        }))
        .unwrap()
    }

    fn bundle(at: &Path) {
        for (path, content) in [("manifest.yaml", "kind: X"), ("images/one/index.json", "{}"), ("bin/x", "#!")] {
            let path = at.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn a_bundle_is_a_folder_or_a_tar() {
        let tmp = tempfile::tempdir().unwrap();
        let (folder, to) = (tmp.path().join("x-v1"), tmp.path().join("home/apps/x"));
        bundle(&folder);
        let tar = tmp.path().join("x.tar");
        let packed = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(tmp.path()).arg("x-v1").status();
        assert!(packed.unwrap().success());
        for from in [&folder, &tar] {
            bring(&app("kind: X"), from, &to).unwrap();
            let mut there: Vec<_> = fs::read_dir(&to).unwrap().map(|e| e.unwrap().file_name()).collect();
            there.sort();
            assert_eq!(there, ["bin", "images", "manifest.yaml"], "{}", from.display());
            assert!(to.join("images/one/index.json").exists() && to.join("bin/x").exists());
        }
    }

    #[test]
    fn what_is_not_the_bundle_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let (folder, to) = (tmp.path().join("x-v1"), tmp.path().join("to"));
        let refused = |app: &App| bring(app, &folder, &to).unwrap_err().to_string();
        assert!(refused(&app("kind: X")).contains("--from"), "nothing there");
        fs::create_dir(&folder).unwrap();
        assert!(refused(&app("kind: X")).contains("no bundle of x-v1"));
        bundle(&folder);
        let said = refused(&app("kind: Y"));
        assert!(said.contains("SHA-256") && said.contains("another version"), "{said}");
        std::os::unix::fs::symlink("/etc/passwd", folder.join("images/one/link")).unwrap();
        assert!(refused(&app("kind: X")).contains("link"), "a link is no part of a bundle");
        fs::remove_dir_all(folder.join(app_file::IMAGES)).unwrap();
        assert!(refused(&app("kind: X")).contains("it has no image"));
    }
}
