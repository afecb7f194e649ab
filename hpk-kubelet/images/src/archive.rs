//! Images in local files: OCI layouts (folder or tar) and `docker save` archives. Nothing is copied: layers
//! are read where they lie. All functions block.

use crate::blobs::{digest_of, folder_name, verify};
use crate::error::SourceError;
use crate::helper::LayerInput;
use crate::manifest::{Descriptor, Document, Manifest, go_arch, select};
use crate::reference::LocalImage;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A local image, ready to unpack.
pub(crate) struct Resolved {
    /// Names the folder in the store.
    pub(crate) digest: String,
    /// Configuration blob.
    pub(crate) config: Vec<u8>,
    /// Bottom first.
    pub(crate) layers: Vec<LayerInput>,
    /// Bytes of layers and configuration.
    pub(crate) size: u64,
}

/// Documents are read whole; none is honestly larger than this (bytes).
const MAX_DOCUMENT: u64 = 8 << 20;

/// Where blobs and documents come from.
enum Layout {
    Folder(PathBuf),
    Tar { path: PathBuf, members: HashMap<String, (u64, u64)> },
}

/// An image of `oci:` or `oci-archive:`.
pub(crate) fn oci(local: &LocalImage) -> Result<Resolved, SourceError> {
    let (path, tag) = local.resolve(Path::exists);
    let layout = Layout::open(&path)?;
    let index = layout.document("index.json")?;
    let Document::Index(entries) = Document::parse(&index)? else {
        return Err(malformed("index.json", "it is not an index"));
    };
    let entry = by_tag(&entries, tag.as_deref())?;
    let (manifest, digest) = layout.manifest(entry)?;
    layout.image(digest, &manifest)
}

/// The entry with the annotation `org.opencontainers.image.ref.name`, or the one for this platform.
fn by_tag<'a>(entries: &'a [Descriptor], tag: Option<&str>) -> Result<&'a Descriptor, SourceError> {
    let name = |d: &Descriptor| -> Option<String> {
        d.annotations.as_ref()?.get("org.opencontainers.image.ref.name").cloned()
    };
    match tag {
        Some(tag) => entries
            .iter()
            .find(|d| name(d).is_some_and(|n| n == tag || n.ends_with(&format!(":{tag}"))))
            .ok_or_else(|| SourceError::NotFound(format!("no image named {tag:?} in index.json"))),
        None => match entries {
            [] => Err(SourceError::NotFound("index.json is empty".to_owned())),
            [only] => Ok(only),
            many => select(many, go_arch()),
        },
    }
}

/// An image of `docker-archive:`.
pub(crate) fn docker(local: &LocalImage) -> Result<Resolved, SourceError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Image {
        config: String,
        #[serde(default)]
        repo_tags: Option<Vec<String>>,
        layers: Vec<String>,
    }
    let (path, tag) = local.resolve(Path::exists);
    let layout = Layout::open(&path)?;
    let document = layout.document("manifest.json")?;
    let images: Vec<Image> = serde_json::from_slice(&document).map_err(SourceError::malformed("manifest.json"))?;
    let image = match &tag {
        Some(tag) => {
            images.iter().find(|i| i.repo_tags.iter().flatten().any(|t| t == tag || t.ends_with(&format!("/{tag}"))))
        }
        None => images.first(),
    }
    .ok_or_else(|| SourceError::NotFound(format!("no image {} in manifest.json", tag.unwrap_or_default())))?;
    let config = layout.document(&image.config)?;
    let layers = image.layers.iter().map(|l| layout.locate(l)).collect::<Result<Vec<_>, _>>()?;
    let digest = layers_digest(&config, &layers)?;
    let size = layers.iter().map(|l| l.length).sum::<u64>() + config.len() as u64;
    Ok(Resolved { digest, config, layers, size })
}

/// `docker save` names no digest that covers its layers as stored: ours covers configuration and layers.
fn layers_digest(config: &[u8], layers: &[LayerInput]) -> Result<String, SourceError> {
    let mut all = digest_of(config);
    for layer in layers {
        all.push_str(&region_digest(layer)?);
    }
    Ok(digest_of(all.as_bytes()))
}

impl Layout {
    fn open(path: &Path) -> Result<Self, SourceError> {
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => SourceError::NotFound(format!("no such file: {}", path.display())),
            _ => SourceError::Io { action: "read", path: path.to_owned(), source: e },
        })?;
        if meta.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let file = File::open(path).map_err(SourceError::io("open", path))?;
        let members = members(file).map_err(|e| malformed(&path.display().to_string(), &e.to_string()))?;
        Ok(Self::Tar { path: path.to_owned(), members })
    }

    fn locate(&self, name: &str) -> Result<LayerInput, SourceError> {
        match self {
            Self::Folder(folder) => {
                if Path::new(name).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                    return Err(malformed(name, "the path leaves the layout"));
                }
                let path = folder.join(name);
                let length = std::fs::metadata(&path).map_err(SourceError::io("read", &path))?.len();
                Ok(LayerInput { path, offset: 0, length })
            }
            Self::Tar { path, members } => members
                .get(name)
                .map(|(offset, length)| LayerInput { path: path.clone(), offset: *offset, length: *length })
                .ok_or_else(|| malformed(&path.display().to_string(), &format!("{name} is missing"))),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let at = self.locate(name)?;
        if at.length > MAX_DOCUMENT {
            return Err(malformed(name, "it is too large"));
        }
        let mut bytes = Vec::new();
        at.open().and_then(|mut r| r.read_to_end(&mut bytes)).map_err(SourceError::io("read", &at.path))?;
        Ok(bytes)
    }

    fn blob_name(digest: &str) -> Result<String, SourceError> {
        Ok(format!("blobs/sha256/{}", &folder_name(digest)?["sha256-".len()..]))
    }

    /// Follows indexes down to an image manifest.
    fn manifest(&self, entry: &Descriptor) -> Result<(Manifest, String), SourceError> {
        let mut digest = entry.digest.clone();
        for _ in 0..4 {
            let bytes = self.document(&Self::blob_name(&digest)?)?;
            verify(&digest, &bytes)?;
            match Document::parse(&bytes)? {
                Document::Image(manifest) => return Ok((manifest, digest)),
                Document::Index(entries) => digest = select(&entries, go_arch())?.digest.clone(),
            }
        }
        Err(malformed("index", "indexes are nested too deeply"))
    }

    fn image(&self, digest: String, manifest: &Manifest) -> Result<Resolved, SourceError> {
        let config = self.document(&Self::blob_name(&manifest.config.digest)?)?;
        verify(&manifest.config.digest, &config)?;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let at = self.locate(&Self::blob_name(&layer.digest)?)?;
            let actual = region_digest(&at)?;
            if actual != layer.digest {
                return Err(SourceError::Digest { expected: layer.digest.clone(), actual });
            }
            layers.push(at);
        }
        let size = layers.iter().map(|l| l.length).sum::<u64>() + config.len() as u64;
        Ok(Resolved { digest, config, layers, size })
    }
}

fn malformed(what: &str, cause: &str) -> SourceError {
    SourceError::Malformed { what: what.to_owned(), cause: cause.to_owned() }
}

/// Name → (offset, length) of a tar's files; links (old `docker save`) are resolved.
fn members(file: File) -> std::io::Result<HashMap<String, (u64, u64)>> {
    let mut members = HashMap::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = clean(&entry.path()?);
        match entry.header().entry_type() {
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let Some(target) = entry.link_name()? else { continue };
                let base = match entry.header().entry_type() {
                    tar::EntryType::Symlink => Path::new(&name).parent().unwrap_or(Path::new("")).to_owned(),
                    _ => PathBuf::new(),
                };
                links.push((name, clean(&base.join(target))));
            }
            tar::EntryType::Directory => {}
            _ => {
                members.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
    }
    for (name, target) in links {
        if let Some(at) = members.get(&target).copied() {
            members.insert(name, at);
        }
    }
    Ok(members)
}

/// Path without `.` and with `..` resolved by its text.
fn clean(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(p) => parts.push(p.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

fn region_digest(at: &LayerInput) -> Result<String, SourceError> {
    use std::fmt::Write;
    let mut reader = at.open().map_err(SourceError::io("read", &at.path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer).map_err(SourceError::io("read", &at.path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

impl LayerInput {
    /// The bytes of this region.
    pub(crate) fn open(&self) -> std::io::Result<std::io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file.take(self.length))
    }
}
