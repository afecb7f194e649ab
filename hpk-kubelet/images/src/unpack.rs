//! The helper's work: layers or a SquashFS into the folder that it is chrooted into.

use crate::inflate::{self, Fault};
use crate::layer::{self, LayerError};
use crate::region::Region;
use crate::squashfs::{Content, Inode, Kind, SquashError, Squashfs};
use crate::tree::{Limits, Meta, Report, Time, Tree, TreeError};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Folders below folders that are followed; a path holds no more.
const MAX_DEPTH: usize = 2048;

/// Why an image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("layer {layer}: {cause}")]
    Layer { layer: usize, cause: LayerError },
    #[error("layer {layer}: reading it: {source}")]
    Read {
        layer: usize,
        #[source]
        source: io::Error,
    },
    #[error("layer {layer}: its compressed data is damaged")]
    Compressed { layer: usize },
    #[error("layer {layer} is not the one that was asked for: expected {expected}, got {actual}")]
    Digest { layer: usize, expected: String, actual: String },
    #[error(transparent)]
    Squash(#[from] SquashError),
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Applies layers, bottom first, each with the digest that its stored bytes must have.
pub(crate) fn layers(layers: &[(Region, String)], owners: bool, limits: Limits) -> Result<Report, UnpackError> {
    let mut tree = Tree::new(owners, limits);
    let mut left = limits.bytes;
    for (n, (region, expected)) in layers.iter().enumerate() {
        let reading = |source| UnpackError::Read { layer: n, source };
        let (mut inflated, source) = inflate::open(region.reader(), left).map_err(reading)?;
        let applied = layer::apply(&mut inflated, &mut tree);
        left = inflated.left();
        drop(inflated);
        match (applied, source.fault()) {
            (_, Some(Fault::TooLong)) => return Err(TreeError::Bytes(limits.bytes).into()),
            (_, Some(Fault::Io(errno))) => return Err(reading(io::Error::from_raw_os_error(errno))),
            (_, Some(Fault::Damaged)) => return Err(UnpackError::Compressed { layer: n }),
            (Err(LayerError::Tree(e @ (TreeError::Bytes(_) | TreeError::Inodes(_) | TreeError::Paths(_)))), None) => {
                return Err(e.into());
            }
            (Err(cause), None) => return Err(UnpackError::Layer { layer: n, cause }),
            (Ok(()), None) => {}
        }
        let actual = source.digest().map_err(reading)?;
        if actual != expected.to_ascii_lowercase() {
            return Err(UnpackError::Digest { layer: n, expected: expected.clone(), actual });
        }
    }
    Ok(tree.report())
}

/// Unpacks the SquashFS that is a SIF's root file system.
pub(crate) fn squashfs(image: &Region, owners: bool, limits: Limits) -> Result<Report, UnpackError> {
    let mut squashfs = Squashfs::open(image)?;
    let mut tree = Tree::new(owners, limits);
    let root = squashfs.root()?;
    tree.set_folder(Path::new("/"), meta(&root))?;
    // First names of files that have several.
    let mut named: HashMap<u32, PathBuf> = HashMap::new();
    let mut folders = vec![(PathBuf::from("/"), root)];
    while let Some((folder, inode)) = folders.pop() {
        let Kind::Folder(listing) = inode.kind else { continue };
        if folder.components().count() > MAX_DEPTH {
            return Err(SquashError::Damaged("its folders are nested too deeply").into());
        }
        for entry in squashfs.entries(listing)? {
            let path = folder.join(OsStr::from_bytes(&entry.name));
            // Two entries of one name: the second is no way through the first.
            if std::fs::symlink_metadata(&path).is_ok() {
                return Err(SquashError::Damaged("a folder has two entries of one name").into());
            }
            let inode = squashfs.inode(&entry)?;
            let meta = meta(&inode);
            match (&inode.kind, named.get(&inode.number)) {
                (Kind::File(_) | Kind::Symlink(_) | Kind::Fifo, Some(first)) if inode.links > 1 => {
                    tree.make_hard_link(&path, first)?;
                    continue;
                }
                (Kind::Folder(_), _) => {
                    tree.make_folder(&path, meta)?;
                    folders.push((path, inode));
                    continue;
                }
                (Kind::File(content), _) => {
                    let mut attributes = squashfs.attributes(&inode)?;
                    attributes.retain(|(name, _)| layer::is_kept(name.as_bytes()));
                    file(&mut squashfs, &mut tree, &path, meta, content, &attributes)?;
                }
                (Kind::Symlink(target), _) => tree.make_symlink(&path, Path::new(OsStr::from_bytes(target)), meta)?,
                (Kind::Fifo, _) => tree.make_fifo(&path, meta)?,
                (Kind::Device, _) => tree.skip_device(&path)?,
                // A socket that nobody listens on is of no use.
                (Kind::Socket, _) => continue,
            }
            if inode.links > 1 {
                named.insert(inode.number, path);
            }
        }
    }
    tree.set_folder_times();
    Ok(tree.report())
}

fn file(
    squashfs: &mut Squashfs<'_>,
    tree: &mut Tree,
    path: &Path,
    meta: Meta,
    content: &Content,
    attributes: &[(OsString, Vec<u8>)],
) -> Result<(), UnpackError> {
    let mut reader = squashfs.read(content);
    let made = tree.make_file(path, meta, &mut reader, attributes);
    match reader.fault() {
        Some(fault) => Err(fault.into()),
        None => Ok(made?),
    }
}

fn meta(inode: &Inode) -> Meta {
    let time = Time { seconds: i64::from(inode.time), nanos: 0 };
    Meta { mode: inode.mode, uid: Some(inode.uid), gid: Some(inode.gid), time }
}
