//! Taking an image out of a file into the store, by a name that pods give: for sites without a registry, and without a
//! network at all.

use crate::archive;
use crate::error::{PullError, SourceError};
use crate::inner::{Progress, PulledImage, blocking};
use crate::keyring::{Keyring, Pass};
use crate::local::{self, LocalImages};
use crate::reference::{Format, LocalImage, Source};
use crate::store::{ImageStore, PullPolicy};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// An image that was taken from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub image: PulledImage,
    /// The names by which pods have it now; empty: only by the file's own name.
    pub names: Vec<String>,
}

impl ImageStore {
    /// Takes the image of a file: the path of an OCI layout or archive, a docker archive or a SIF, or such a reference as a
    /// pod may have (`oci-archive:/a.tar:tag`). It gets `name`, else the names that the file gives it.
    ///
    /// # Errors
    /// As [`ImageStore::pull`]; a name that is none.
    pub async fn load(
        &self,
        file: &str,
        name: Option<&str>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Loaded, PullError> {
        let invalid = |cause: String| PullError::InvalidName { image: file.to_owned(), cause };
        let given = name
            .map(full_name)
            .transpose()
            .map_err(|cause| PullError::InvalidName { image: name.unwrap_or_default().to_owned(), cause })?;
        let reference = match Source::parse(file) {
            Ok(Source::Local(_)) => file.to_owned(),
            _ => reference(Path::new(file)).map_err(invalid)?,
        };
        let source = Source::parse(&reference).map_err(|error| invalid(error.to_string()))?;
        let anywhere = &LocalImages::Anywhere;
        let image = self.pull(&reference, PullPolicy::Always, &Keyring::default(), anywhere, progress).await?;
        let of = |e: SourceError| e.of(file, source.registry());
        let names = match (given, source.clone()) {
            (Some(name), _) => vec![name],
            (None, Source::Local(LocalImage { format, spec })) if format != Format::Sif => {
                let found =
                    blocking(move || archive::names(&local::open(&spec, &LocalImages::Anywhere)?, format)).await;
                // A name in a file that is none for a registry is of no use to pods.
                found.map_err(of)?.iter().filter_map(|name| full_name(name).ok()).collect()
            }
            _ => Vec::new(),
        };
        for name in &names {
            self.inner.name(name.clone(), &image.image_ref, None, Pass::open()).map_err(of)?;
        }
        // Who has taken it out of the file does not mean the file any more: by its last name the image is to go.
        if !names.is_empty() {
            let path = self.inner.ref_path(&source.normalized());
            std::fs::remove_file(&path).map_err(SourceError::io("remove", path)).map_err(of)?;
        }
        Ok(Loaded { image, names })
    }
}

/// A registry's name in full.
fn full_name(name: &str) -> Result<String, String> {
    match Source::parse(name).map_err(|e| e.to_string())? {
        source @ Source::Registry(_) => Ok(source.normalized()),
        Source::Local(_) => Err("it must be a name as of a registry, such as app:1".to_owned()),
    }
}

/// What a pod would call the image in a file, by what the file is.
fn reference(path: &Path) -> Result<String, String> {
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    let meta = std::fs::metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if meta.is_dir() {
        return match (path.join("index.json").is_file(), path.join("manifest.json").is_file()) {
            (true, _) => Ok(format!("oci:{}", path.display())),
            (_, true) => Ok(format!("docker-archive:{}", path.display())),
            _ => Err(format!("{}: a folder with neither index.json (OCI layout) nor manifest.json", path.display())),
        };
    }
    if !meta.is_file() {
        return Err(format!("{}: neither a regular file nor a folder", path.display()));
    }
    let mut head = [0; 64];
    let read = File::open(&path).and_then(|mut file| file.read(&mut head));
    let read = read.map_err(|e| format!("{}: {e}", path.display()))?;
    if head.get(32..42).is_some_and(|mark| mark == b"SIF_MAGIC\0") {
        return match path.extension().is_some_and(|e| e == "sif") {
            true => Ok(path.display().to_string()),
            false => Err(format!("{}: a SIF: give it a name that ends in .sif", path.display())),
        };
    }
    if head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(format!("{}: it is compressed: gunzip or unzstd it first", path.display()));
    }
    if read == 0 {
        return Err(format!("{}: it is empty", path.display()));
    }
    Ok(match has_member(&path, "index.json") {
        true => format!("oci-archive:{}", path.display()),
        false => format!("docker-archive:{}", path.display()),
    })
}

/// Whether a tar has this file. `docker save` of today writes both documents, and what the OCI one says is more.
fn has_member(path: &Path, name: &str) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut archive = tar::Archive::new(file);
    let Ok(entries) = archive.entries_with_seek() else { return false };
    entries
        .map_while(Result::ok)
        .any(|entry| entry.path().is_ok_and(|p| p.strip_prefix("./").unwrap_or(&p) == Path::new(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let tar = |name: &str, member: &str| {
            let mut builder = tar::Builder::new(File::create(at(name)).unwrap());
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_cksum();
            builder.append_data(&mut header, member, &b"{}"[..]).unwrap();
            builder.finish().unwrap();
        };
        tar("a.tar", "index.json");
        tar("b.tar", "manifest.json");
        std::fs::create_dir(at("layout")).unwrap();
        std::fs::write(at("layout/index.json"), "{}").unwrap();
        std::fs::write(at("z.tar"), [0x1f, 0x8b, 8]).unwrap();
        let told = |name: &str| reference(&at(name)).map(|r| r.replace(&dir.path().display().to_string(), ""));
        assert_eq!(told("a.tar"), Ok("oci-archive:/a.tar".into()));
        assert_eq!(told("b.tar"), Ok("docker-archive:/b.tar".into()));
        assert_eq!(told("layout"), Ok("oci:/layout".into()));
        assert!(told("z.tar").unwrap_err().contains("gunzip"));
        assert!(told("none").unwrap_err().contains("none"));
        assert!(told("").unwrap_err().contains("index.json"));
    }
}
