//! Images in local files: OCI layouts (folder or tar) and `docker save` archives. Nothing is copied: layers
//! are read where they lie. All functions block. Errors show no byte of the files, which may be any.

use crate::blobs::{digest_of, digest_of_reader, folder_name, verify};
use crate::error::SourceError;
use crate::local::{Folder, Node, Opened};
use crate::manifest::{Descriptor, Document, MAX_LAYERS, Manifest, go_arch, select};
use crate::reference::Format;
use crate::region::{Region, RegionReader};
use crate::tree::TreeError;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A local image, ready to unpack.
pub(crate) struct Resolved {
    /// Names the folder in the store.
    pub(crate) digest: String,
    /// Configuration blob.
    pub(crate) config: Vec<u8>,
    /// Bottom first, with their digests.
    pub(crate) layers: Vec<(Region, String)>,
    /// Bytes of layers and configuration.
    pub(crate) size: u64,
}

/// Documents are read whole; none is honestly larger than this (bytes).
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

/// Bytes of headers that are read from a tar: enough for a hundred thousand members.
const MAX_HEADERS: u64 = 64 << 20;

/// Where blobs and documents come from.
enum Layout<'a> {
    Folder(&'a Folder),
    Tar { file: &'a Region, members: HashMap<String, (u64, u64)> },
}

/// Counts the layers of one image, before each is hashed: a sparse file of any length costs nothing to make, and a layout
/// may name one many times.
struct Sum {
    bytes: u64,
    most: u64,
}

impl Sum {
    fn add(&mut self, more: u64) -> Result<(), SourceError> {
        self.bytes = self.bytes.saturating_add(more);
        if self.bytes <= self.most {
            return Ok(());
        }
        Err(SourceError::Unpack(TreeError::Bytes(self.most).to_string()))
    }
}

/// An image of `oci:` or `oci-archive:`, of at most so many bytes.
pub(crate) fn oci(opened: &Opened, most: u64) -> Result<Resolved, SourceError> {
    let layout = Layout::open(opened)?;
    let index = layout.document("index.json")?;
    let Document::Index(entries) = Document::parse(&index)? else {
        return Err(invalid("index.json", "it is not an index"));
    };
    let entry = by_tag(&entries, opened.tag.as_deref())?;
    let (manifest, digest) = layout.manifest(entry)?;
    layout.image(digest, &manifest, most)
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

/// The names that a local image has by its file: of `docker save`, of containerd, or of whoever made the layout.
pub(crate) fn names(opened: &Opened, format: Format) -> Result<Vec<String>, SourceError> {
    let layout = Layout::open(opened)?;
    if format == Format::DockerArchive {
        return Ok(docker_image(&layout, opened)?.repo_tags.unwrap_or_default());
    }
    let Document::Index(entries) = Document::parse(&layout.document("index.json")?)? else { return Ok(Vec::new()) };
    let annotations = by_tag(&entries, opened.tag.as_deref())?.annotations.clone().unwrap_or_default();
    let whole = annotations.get("io.containerd.image.name").cloned();
    // Often it is a tag alone, which names no image.
    let reference =
        annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/'])).cloned();
    Ok(whole.or(reference).into_iter().collect())
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_image(layout: &Layout<'_>, opened: &Opened) -> Result<DockerImage, SourceError> {
    let document = layout.document("manifest.json")?;
    let images: Vec<DockerImage> = serde_json::from_slice(&document).map_err(SourceError::json("manifest.json"))?;
    let image = match &opened.tag {
        Some(tag) => images
            .into_iter()
            .find(|i| i.repo_tags.iter().flatten().any(|t| t == tag || t.ends_with(&format!("/{tag}")))),
        None => images.into_iter().next(),
    };
    image.ok_or_else(|| {
        SourceError::NotFound(format!("no image {} in manifest.json", opened.tag.as_deref().unwrap_or_default()))
    })
}

/// An image of `docker-archive:`, of at most so many bytes.
pub(crate) fn docker(opened: &Opened, most: u64) -> Result<Resolved, SourceError> {
    let layout = Layout::open(opened)?;
    let image = docker_image(&layout, opened)?;
    let config = layout.document(&image.config)?;
    if image.layers.len() > MAX_LAYERS {
        return Err(invalid("manifest.json", "it has too many layers"));
    }
    let mut layers = Vec::new();
    // `docker save` names no digest that covers its layers as stored: ours covers configuration and layers.
    let mut all = digest_of(&config);
    let mut sum = Sum { bytes: config.len() as u64, most };
    for name in &image.layers {
        let layer = layout.locate(name)?;
        sum.add(layer.length)?;
        let digest = digest_of_reader(layer.reader()).map_err(SourceError::io("read", &opened.path))?;
        all.push_str(&digest);
        layers.push((layer, digest));
    }
    Ok(Resolved { digest: digest_of(all.as_bytes()), config, layers, size: sum.bytes })
}

impl<'a> Layout<'a> {
    fn open(opened: &'a Opened) -> Result<Self, SourceError> {
        match &opened.node {
            Node::Folder(folder) => Ok(Self::Folder(folder)),
            Node::File(file) => {
                let cause = "it is not a tar of an image";
                let members = members(file).map_err(|_| invalid(&opened.path.display().to_string(), cause))?;
                Ok(Self::Tar { file, members })
            }
        }
    }

    fn locate(&self, name: &str) -> Result<Region, SourceError> {
        match self {
            Self::Folder(folder) => folder.file(name),
            Self::Tar { file, members } => members
                .get(name)
                .and_then(|(offset, length)| file.part(*offset, *length))
                .ok_or_else(|| invalid("the archive", &format!("{name} is missing"))),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        let at = self.locate(name)?;
        if at.length > MAX_DOCUMENT {
            return Err(invalid(name, "it is too large"));
        }
        let mut bytes = Vec::new();
        at.reader().read_to_end(&mut bytes).map_err(SourceError::io("read", name))?;
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
        Err(invalid("index", "indexes are nested too deeply"))
    }

    fn image(&self, digest: String, manifest: &Manifest, most: u64) -> Result<Resolved, SourceError> {
        let config = self.document(&Self::blob_name(&manifest.config.digest)?)?;
        verify(&manifest.config.digest, &config)?;
        let mut layers = Vec::new();
        let mut sum = Sum { bytes: config.len() as u64, most };
        for layer in &manifest.layers {
            let at = self.locate(&Self::blob_name(&layer.digest)?)?;
            sum.add(at.length)?;
            let actual = digest_of_reader(at.reader()).map_err(SourceError::io("read", &layer.digest))?;
            if actual != layer.digest {
                return Err(SourceError::Digest { expected: layer.digest.clone(), actual });
            }
            layers.push((at, actual));
        }
        Ok(Resolved { digest, config, layers, size: sum.bytes })
    }
}

fn invalid(what: &str, cause: &str) -> SourceError {
    SourceError::InvalidImage { what: what.to_owned(), cause: cause.to_owned() }
}

/// Reads no more than so many bytes: the tar reader keeps what a header announces in memory.
struct Sparing {
    reader: RegionReader,
    left: u64,
}

impl Read for Sparing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| io::Error::other("its headers are too long"))?;
        Ok(n)
    }
}

impl Seek for Sparing {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.reader.seek(to)
    }
}

/// Name → (offset, length) of a tar's files; links (old `docker save`) are resolved.
fn members(file: &Region) -> io::Result<HashMap<String, (u64, u64)>> {
    let mut members = HashMap::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(Sparing { reader: file.reader(), left: MAX_HEADERS });
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
