//! Against images that the crate backhand writes, and against damaged ones.

use super::*;
use backhand::compression::{CompressionOptions, Compressor as Written, Lz4};
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::Read;

/// Path → what is there, as text.
type Found = BTreeMap<String, String>;

/// Not compressible, so that the stored blocks differ in size.
fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", vec![]),
        ("small", b"small".to_vec()),
        ("block", noise(4096)),
        ("zeros", vec![0; 3 * 4096]),
        ("tail", noise(5 * 4096 + 77)),
        ("d/e/deep", b"deep".to_vec()),
    ]
}

fn image(compressor: Written, block_size: u32, many: u32) -> Vec<u8> {
    let mut writer = FilesystemWriter::default();
    let options = (compressor == Written::Lz4).then_some(CompressionOptions::Lz4(Lz4 { version: 1, flags: 0 }));
    writer.set_compressor(FilesystemCompressor::new(compressor, options).unwrap());
    writer.set_block_size(block_size);
    writer.set_root_mode(0o755);
    let header = |mode, id| NodeHeader::new(mode, id, id + 1, 1_000_000_000);
    for folder in ["d", "d/e", "many"] {
        writer.push_dir(folder, header(0o1750, 7)).unwrap();
    }
    for (path, content) in files() {
        writer.push_file(std::io::Cursor::new(content), path, header(0o4711, 70_000)).unwrap();
    }
    for n in 0..many {
        let path = format!("many/{n:06}-{}", "x".repeat(60));
        writer.push_file(std::io::Cursor::new(n.to_string()), path, header(0o644, 0)).unwrap();
    }
    writer.push_symlink("../target", "d/link", header(0o777, 0)).unwrap();
    writer.push_fifo("fifo", header(0o600, 0)).unwrap();
    writer.push_char_device(259, "null", header(0o666, 0)).unwrap();
    let mut out = std::io::Cursor::new(Vec::new());
    writer.write(&mut out).unwrap();
    out.into_inner()
}

/// Reads everything, within bounds.
fn read_all(image: &Vec<u8>) -> Result<Found> {
    let mut squashfs = Squashfs::open(image)?;
    let mut found = Found::new();
    let mut folders = vec![(String::new(), squashfs.root()?)];
    while let Some((path, inode)) = folders.pop() {
        let Kind::Folder(listing) = inode.kind else { panic!("no folder") };
        for entry in squashfs.entries(listing)? {
            if found.len() > 20_000 {
                return Ok(found);
            }
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let inode = squashfs.inode(&entry)?;
            let what = match &inode.kind {
                Kind::Folder(_) => "folder".to_owned(),
                Kind::File(content) => {
                    let mut bytes = Vec::new();
                    let mut reader = squashfs.read(content);
                    let read = (&mut reader).take(1 << 20).read_to_end(&mut bytes);
                    if let Some(fault) = reader.fault() {
                        return Err(fault);
                    }
                    read?;
                    crate::blobs::digest_of(&bytes)
                }
                Kind::Symlink(target) => String::from_utf8_lossy(target).into_owned(),
                other => format!("{other:?}"),
            };
            found.insert(
                path.trim_start_matches('/').to_owned(),
                format!("{:o} {}:{} {} {what}", inode.mode, inode.uid, inode.gid, inode.time),
            );
            if matches!(inode.kind, Kind::Folder(_)) {
                folders.push((path, inode));
            }
        }
    }
    Ok(found)
}

#[test]
fn what_was_written_is_read() {
    for (compressor, block_size) in
        [(Written::Gzip, 4096), (Written::Zstd, 4096), (Written::Lz4, 4096), (Written::Gzip, 131_072)]
    {
        let found = read_all(&image(compressor, block_size, 3000)).unwrap();
        let mut expected = Found::new();
        for (path, content) in files() {
            let digest = crate::blobs::digest_of(&content);
            expected.insert(path.to_owned(), format!("4711 70000:70001 1000000000 {digest}"));
        }
        for n in 0..3000u32 {
            let digest = crate::blobs::digest_of(n.to_string().as_bytes());
            expected.insert(format!("many/{n:06}-{}", "x".repeat(60)), format!("644 0:1 1000000000 {digest}"));
        }
        for folder in ["d", "d/e", "many"] {
            expected.insert(folder.to_owned(), "1750 7:8 1000000000 folder".to_owned());
        }
        expected.insert("d/link".to_owned(), "777 0:1 1000000000 ../target".to_owned());
        expected.insert("fifo".to_owned(), "600 0:1 1000000000 Fifo".to_owned());
        expected.insert("null".to_owned(), "666 0:1 1000000000 Device".to_owned());
        assert!(found == expected, "{compressor:?} {block_size}: {} and {} entries", found.len(), expected.len());
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let good = image(Written::Gzip, 4096, 3);
    let change = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        read_all(&bytes).unwrap_err().to_string()
    };
    assert!(change(0, b'x').contains("magic"));
    assert!(change(20, 4).contains("compressed by xz; build the image again"));
    assert!(change(28, 3).contains("version"));
    assert!(change(22, 40).contains("block size"));
    assert!(read_all(&good[..50].to_vec()).unwrap_err().to_string().contains("too early"));
    assert!(read_all(&good[..good.len() / 2].to_vec()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn damage_ends_in_an_error_and_in_bounds(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..30)) {
        thread_local!(static GOOD: Vec<u8> = {
            // Without padding, so that most changes hit something.
            let mut bytes = image(Written::Gzip, 4096, 40);
            while bytes.last() == Some(&0) { bytes.pop(); }
            bytes.push(0);
            bytes
        });
        let mut bytes = GOOD.with(Clone::clone);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Either is right; a panic or a loop is not.
        let _ = read_all(&bytes);
    }
}
