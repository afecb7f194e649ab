//! Images in the user's own files, hostile ones too, unpacked by the real helper. As root, owners are checked as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

use backhand::compression::Compressor;
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use hpk_images::{
    ImageStore, Keyring, Layout, Limits, LocalImages, Progress, PullError, PullPolicy, PulledImage, Registries,
};
use hpk_images::{StoreConfig, Verified, helper};
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

struct Place {
    folder: tempfile::TempDir,
    store: ImageStore,
}

fn place_with(limits: Limits) -> Place {
    place_of(limits, Layout::Folder)
}

fn place_of(limits: Limits, layout: Layout) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::new(StoreConfig {
        root: folder.path().join("store"),
        helper: helper::command_of(env!("CARGO_BIN_EXE_hpk-image").as_ref()),
        registries: Registries::default(),
        limits,
        layout,
    })
    .unwrap();
    Place { folder, store }
}

fn place() -> Place {
    place_with(Limits::default())
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn pull(&self, image: &str) -> Result<PulledImage, PullError> {
        self.pull_while(image, &|_| ()).await
    }

    async fn pull_while(
        &self,
        image: &str,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PulledImage, PullError> {
        self.store.pull(image, PullPolicy::Always, &Keyring::default(), &LocalImages::Anywhere, progress).await
    }

    /// The root file system of an image that must be had.
    async fn rootfs(&self, image: &str) -> PathBuf {
        self.store.rootfs(&self.pull(image).await.unwrap().image_ref)
    }

    fn is_clean(&self) -> bool {
        std::fs::read_dir(self.path("store/.tmp")).unwrap().next().is_none() && self.store.list().unwrap().is_empty()
    }

    /// An OCI layout in folder `name`; the path of its last layer's file.
    fn layout(&self, name: &str, layers: &[Vec<u8>]) -> PathBuf {
        let blobs = self.path(name).join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let mut last = PathBuf::new();
        let mut put = |bytes: &[u8]| {
            let digest = sha256(bytes);
            last = blobs.join(&digest);
            std::fs::write(&last, bytes).unwrap();
            format!(r#"{{"digest":"sha256:{digest}","size":{}}}"#, bytes.len())
        };
        let config = put(br#"{"config":{"Cmd":["sh"]}}"#);
        let layers: Vec<String> = layers.iter().map(|l| put(l)).collect();
        let path = last.clone();
        let put = |bytes: &[u8]| {
            let digest = sha256(bytes);
            std::fs::write(blobs.join(&digest), bytes).unwrap();
            format!(r#"{{"digest":"sha256:{digest}","size":{}}}"#, bytes.len())
        };
        let manifest =
            put(format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{}]}}"#, layers.join(",")).as_bytes());
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
        std::fs::write(self.path(name).join("index.json"), index).unwrap();
        path
    }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// A SIF around a file system: header, one descriptor, the partition.
fn sif(partition: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[..31].copy_from_slice(b"#!/usr/bin/env run-singularity\n");
    bytes[32..42].copy_from_slice(b"SIF_MAGIC\0");
    bytes[88..96].copy_from_slice(&1u64.to_le_bytes());
    bytes[96..104].copy_from_slice(&128u64.to_le_bytes());
    let descriptor = &mut bytes[128..];
    descriptor[..4].copy_from_slice(&0x4004u32.to_le_bytes());
    descriptor[4] = 1;
    descriptor[17..25].copy_from_slice(&1024u64.to_le_bytes());
    descriptor[25..33].copy_from_slice(&(partition.len() as u64).to_le_bytes());
    descriptor[201..205].copy_from_slice(&1u32.to_le_bytes());
    descriptor[205..209].copy_from_slice(&2u32.to_le_bytes());
    descriptor[209..211].copy_from_slice(b"00");
    bytes.extend_from_slice(partition);
    bytes
}

fn squashfs(fill: impl FnOnce(&mut FilesystemWriter<'_, '_, '_>)) -> Vec<u8> {
    let mut writer = FilesystemWriter::default();
    writer.set_compressor(FilesystemCompressor::new(Compressor::Gzip, None).unwrap());
    writer.set_root_mode(0o755);
    fill(&mut writer);
    let mut out = Cursor::new(Vec::new());
    writer.write(&mut out).unwrap();
    out.into_inner()
}

fn header(mode: u16, id: u32) -> NodeHeader {
    NodeHeader::new(mode, id, id, 1_000_000_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sif_is_unpacked_with_modes_owners_and_times() {
    let place = place();
    let noise: Vec<u8> = (0..700_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let image = squashfs(|w| {
        w.push_dir(".singularity.d", header(0o755, 0)).unwrap();
        w.push_file(Cursor::new("#!/bin/sh\n"), ".singularity.d/runscript", header(0o755, 0)).unwrap();
        w.push_dir("data", header(0o1770, 7)).unwrap();
        w.push_file(Cursor::new(noise.clone()), "data/noise", header(0o4751, 7)).unwrap();
        w.push_symlink("data/noise", "link", header(0o777, 0)).unwrap();
        w.push_char_device(259, "null", header(0o666, 0)).unwrap();
    });
    let path = place.path("x.sif");
    std::fs::write(&path, sif(&image)).unwrap();
    let pulled = place.pull(path.to_str().unwrap()).await.unwrap();
    let root = place.store.rootfs(&pulled.image_ref);
    assert!(pulled.config.entrypoint.iter().any(|word| word.contains("/.singularity.d/runscript")));
    assert!(pulled.image_ref.id.starts_with(&format!("{}@sha256:", path.display())));
    assert_eq!(std::fs::read(root.join("data/noise")).unwrap(), noise);
    assert_eq!(std::fs::read_link(root.join("link")).unwrap(), Path::new("data/noise"));
    assert!(!root.join("null").exists());
    for (file, mode) in [("data", 0o1770), ("data/noise", 0o4751)] {
        let meta = std::fs::metadata(root.join(file)).unwrap();
        assert_eq!((meta.permissions().mode() & 0o7777, meta.mtime()), (mode, 1_000_000_000), "{file}");
        if is_root() {
            assert_eq!((meta.uid(), meta.gid()), (7, 7), "{file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_named_sif_runs_nothing() {
    let place = place();
    let proof = place.path("proof");
    let path = place.path("x.sif");
    let text = format!("bootstrap: localimage\nfrom: /\n%setup\n    touch {}\n", proof.display());
    let good = sif(&squashfs(|w| w.push_dir("etc", header(0o755, 0)).unwrap()));
    for content in [text.clone().into_bytes(), text.repeat(20).into_bytes(), good[..1500].to_vec(), vec![]] {
        std::fs::write(&path, content).unwrap();
        let error = place.pull(path.to_str().unwrap()).await.unwrap_err();
        assert!(matches!(error, PullError::InvalidImage { .. }), "{error}");
        assert!(error.to_string().contains("x.sif"), "{error}");
    }
    assert!(!proof.exists() && place.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_image_shows_nothing_of_itself() {
    let place = place();
    let secret = place.path("credentials");
    symlink("credentials", place.path("credentials.sif")).unwrap();
    for content in ["hunter2", r#"{"hunter2": "hunter2"}"#, &"hunter2\n".repeat(1000)] {
        std::fs::write(&secret, content).unwrap();
        for image in ["oci-archive:{}", "docker-archive:{}", "oci:{}", "{}.sif"]
            .map(|i| i.replace("{}", secret.to_str().unwrap()))
        {
            let error = place.pull(&image).await.unwrap_err();
            assert!(matches!(error, PullError::InvalidImage { .. }), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        // As documents of a layout, and as a layer.
        let layer = place.layout("layout", &[content.as_bytes().to_vec()]);
        let oci = format!("oci:{}", place.path("layout").display());
        let error = place.pull(&oci).await.unwrap_err().to_string();
        assert!(error.contains("not a readable tar") && !error.contains("hunter2"), "{error}");
        std::fs::remove_file(place.path("layout/index.json")).unwrap();
        std::fs::copy(&secret, place.path("layout/index.json")).unwrap();
        let error = place.pull(&oci).await.unwrap_err().to_string();
        assert!(error.contains("JSON") || error.contains("index"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(layer.exists() && place.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_whose_layer_is_a_link_out_is_refused() {
    let place = place();
    let mut tar = tar::Builder::new(Vec::new());
    let mut head = tar::Header::new_gnu();
    head.set_size(6);
    tar.append_data(&mut head, "private", &b"secret"[..]).unwrap();
    let private = tar.into_inner().unwrap();
    std::fs::write(place.path("private.tar"), &private).unwrap();
    let layer = place.layout("oci", std::slice::from_ref(&private));
    std::fs::remove_file(&layer).unwrap();
    symlink(place.path("private.tar"), &layer).unwrap();
    std::fs::create_dir(place.path("docker")).unwrap();
    symlink("../private.tar", place.path("docker/layer.tar")).unwrap();
    std::fs::write(place.path("docker/config.json"), "{}").unwrap();
    let manifest = r#"[{"Config":"config.json","Layers":["layer.tar"]}]"#;
    std::fs::write(place.path("docker/manifest.json"), manifest).unwrap();
    for image in ["oci:{}/oci", "docker-archive:{}/docker"] {
        let error = place.pull(&image.replace("{}", place.folder.path().to_str().unwrap())).await.unwrap_err();
        assert!(error.to_string().contains("leads out of the image's folder"), "{error}");
    }
    assert!(place.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_exchanged_after_its_check_is_not_kept() {
    let place = place();
    let tar = |text: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut head = tar::Header::new_gnu();
        head.set_size(text.len() as u64);
        head.set_mode(0o755);
        tar.append_data(&mut head, "bin/sh", text.as_bytes()).unwrap();
        tar.into_inner().unwrap()
    };
    let layer = place.layout("layout", &[tar("good")]);
    let image = format!("oci:{}", place.path("layout").display());
    // In place: the file that is open gets other bytes.
    let exchange = |progress: Progress| {
        if progress == Progress::Unpacking {
            std::fs::write(&layer, tar("evil")).unwrap();
        }
    };
    let error = place.pull_while(&image, &exchange).await.unwrap_err();
    assert!(error.to_string().contains("not the one that was asked for"), "{error}");
    assert!(place.is_clean());
    std::fs::write(&layer, tar("good")).unwrap();
    assert_eq!(std::fs::read(place.rootfs(&image).await.join("bin/sh")).unwrap(), b"good");

    // By its name: what was opened is what is unpacked.
    let sif_path = place.path("x.sif");
    let with =
        |text: &'static str| sif(&squashfs(|w| w.push_file(Cursor::new(text), "who", header(0o644, 0)).unwrap()));
    std::fs::write(&sif_path, with("good")).unwrap();
    let exchange = |progress: Progress| {
        if progress == Progress::Unpacking {
            std::fs::write(place.path("other.sif"), with("evil")).unwrap();
            std::fs::rename(place.path("other.sif"), &sif_path).unwrap();
        }
    };
    let pulled = place.pull_while(sif_path.to_str().unwrap(), &exchange).await.unwrap();
    assert_eq!(std::fs::read(place.store.rootfs(&pulled.image_ref).join("who")).unwrap(), b"good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fifo_is_refused_at_once() {
    let place = place();
    let fifo = place.path("fifo.sif");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for prefix in ["", "oci-archive:", "docker-archive:", "oci:"] {
        let image = format!("{prefix}{}", fifo.display());
        let pull = tokio::time::timeout(std::time::Duration::from_secs(60), place.pull(&image));
        let error = pull.await.expect("it blocks").unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}

/// One entry of a layer: `text` is its content or target.
struct Item<'a> {
    kind: tar::EntryType,
    path: &'a str,
    text: &'a str,
    mode: u32,
    time: i64,
}

fn file<'a>(path: &'a str, text: &'a str) -> Item<'a> {
    Item { kind: tar::EntryType::Regular, path, text, mode: 0o640, time: 1_000_000_000 }
}

fn dir(path: &str, mode: u32) -> Item<'_> {
    Item { kind: tar::EntryType::Directory, path, text: "", mode, time: 1_000_000_000 }
}

fn link<'a>(path: &'a str, target: &'a str) -> Item<'a> {
    Item { kind: tar::EntryType::Symlink, path, text: target, mode: 0o777, time: 1_000_000_000 }
}

fn hard<'a>(path: &'a str, target: &'a str) -> Item<'a> {
    Item { kind: tar::EntryType::Link, path, text: target, mode: 0o644, time: 1_000_000_000 }
}

fn layer(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        // Negative ones in base 256, as GNU tar writes them.
        let mut time = [0xff; 12];
        time[4..].copy_from_slice(&item.time.to_be_bytes());
        match item.time {
            0.. => header.set_mtime(item.time.unsigned_abs()),
            _ => header.as_old_mut().mtime = time,
        }
        let is_file = item.kind == tar::EntryType::Regular;
        if !is_file {
            header.set_link_name_literal(item.text).unwrap();
        }
        let content = if is_file { item.text.as_bytes() } else { b"" };
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..item.path.len()].copy_from_slice(item.path.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Place {
    async fn unpacked(&self, layers: &[Vec<u8>]) -> PathBuf {
        self.layout("layers", layers);
        self.rootfs(&format!("oci:{}", self.path("layers").display())).await
    }
}

fn mode(path: PathBuf) -> u32 {
    std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o7777
}

fn text(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_a_layer_implies_are_roots_and_0755() {
    let place = place();
    let root =
        place.unpacked(&[layer(&[file("root/.ssh/keys/one", "1"), dir("etc", 0o711), file("etc/a/b", "")])]).await;
    for (path, expected) in [("root", 0o755), ("root/.ssh", 0o755), ("root/.ssh/keys", 0o755), ("etc", 0o711)] {
        assert_eq!(mode(root.join(path)), expected, "{path}");
    }
    assert_eq!((mode(root.join("etc/a")), mode(root.join("etc/a/b"))), (0o755, 0o640));
}

#[tokio::test(flavor = "multi_thread")]
async fn times_before_1970_are_kept() {
    let place = place();
    let mut old = file("old", "x");
    old.time = -86_400;
    let mut folder = dir("folder", 0o755);
    folder.time = -1;
    let mut far = file("far", "x");
    far.time = i64::MIN;
    let root = place.unpacked(&[layer(&[folder, old, far, link("link", "old")])]).await;
    let time = |path: &str| std::fs::symlink_metadata(root.join(path)).unwrap().mtime();
    assert_eq!((time("old"), time("folder"), time("link")), (-86_400, -1, 1_000_000_000));
    assert!(root.join("far").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_of_a_dangling_link_is_made_inside() {
    let place = place();
    let base = layer(&[link("opt", "/usr/opt"), link("up", "../../../outside"), link("loop", "loop")]);
    let top = layer(&[file("opt/tool", "tool"), file("up/deep/x", "x")]);
    let root = place.unpacked(&[base, top]).await;
    assert_eq!(text(root.join("usr/opt/tool")), "tool");
    assert_eq!(text(root.join("outside/deep/x")), "x");
    assert_eq!(std::fs::read_link(root.join("opt")).unwrap(), Path::new("/usr/opt"));
    place.layout("bad", &[layer(&[link("loop", "loop"), file("loop/x", "x")])]);
    let error = place.pull(&format!("oci:{}", place.path("bad").display())).await.unwrap_err();
    assert!(error.to_string().contains("follow /loop"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_hide_lower_layers_only() {
    let place = place();
    let base = layer(&[
        file("gone", ""),
        file("twice", "lower"),
        file("tree/lower/a", ""),
        file("opaque/lower/b", ""),
        file("opaque/both/c", ""),
        dir("real", 0o755),
        file("real/lower", ""),
        link("alias", "real"),
        file("stays", ""),
    ]);
    let top = layer(&[
        file(".wh.gone", ""),
        // Of the same layer, before and after its whiteout.
        file("twice", "upper"),
        file(".wh.twice", ""),
        file(".wh.tree", ""),
        file("tree/upper", ""),
        file("opaque/both/d", ""),
        file("opaque/.wh..wh..opq", ""),
        // Through a link.
        file("alias/upper", ""),
        file("alias/.wh..wh..opq", ""),
        file(".wh..", ""),
        file(".wh...", ""),
        file(".wh.never-was", ""),
        file("absent/.wh.x", ""),
    ]);
    let root = place.unpacked(&[base, top]).await;
    assert_eq!(text(root.join("twice")), "upper");
    for present in ["tree/upper", "opaque/both/d", "real/upper", "stays", "alias"] {
        assert!(std::fs::symlink_metadata(root.join(present)).is_ok(), "{present} is gone");
    }
    for absent in ["gone", "tree/lower", "opaque/lower", "opaque/both/c", "real/lower", "absent", ".wh.gone"] {
        assert!(std::fs::symlink_metadata(root.join(absent)).is_err(), "{absent} is there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_links_reach_into_lower_layers() {
    let place = place();
    let base = layer(&[file("usr/bin/tool", "one"), link("bin", "usr/bin")]);
    let middle = layer(&[hard("usr/bin/alias", "bin/tool"), hard("usr/bin/tool", "bin/tool")]);
    let top = layer(&[file("usr/bin/tool", "two")]);
    let root = place.unpacked(&[base, middle, top]).await;
    assert_eq!((text(root.join("usr/bin/alias")), text(root.join("usr/bin/tool"))), ("one".into(), "two".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_ends_at_the_limits() {
    let limits = Limits { bytes: 1 << 20, inodes: 50 };
    let place = place_with(limits);
    let many: Vec<String> = (0..60).map(|n| format!("d{n}")).collect();
    let many: Vec<_> = many.iter().map(|path| dir(path, 0o755)).collect();
    let big = "x".repeat(600 << 10);
    let gzip = |bytes: &[u8]| {
        use std::io::Write;
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    for (layers, words) in [
        (vec![layer(&many)], "more than 50 files"),
        (vec![layer(&[file("a/b/c/d", "")]), layer(&many[..48])], "more than 50 files"),
        // Each is small enough; what a later layer replaces counts too.
        (vec![gzip(&layer(&[file("a", &big)])), gzip(&layer(&[file("a", &big)]))], "more than 1048576 bytes"),
    ] {
        std::fs::remove_dir_all(place.path("bomb")).ok();
        place.layout("bomb", &layers);
        let error = place.pull(&format!("oci:{}", place.path("bomb").display())).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("hpk up --image-max-"), "{error}");
        assert!(place.is_clean());
    }
    let zeros = squashfs(|w| w.push_file(Cursor::new(vec![0; 2 << 20]), "zeros", header(0o644, 0)).unwrap());
    std::fs::write(place.path("bomb.sif"), sif(&zeros)).unwrap();
    let error = place.pull(place.path("bomb.sif").to_str().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    // A sparse file of any length is not even hashed.
    std::fs::File::create(place.path("sparse.sif")).unwrap().set_len(1 << 40).unwrap();
    let error = place.pull(place.path("sparse.sif").to_str().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    let layer = place.layout("sparse", &[layer(&[file("a", "")])]);
    std::fs::File::options().write(true).open(layer).unwrap().set_len(1 << 40).unwrap();
    let error = place.pull(&format!("oci:{}", place.path("sparse").display())).await.unwrap_err().to_string();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = entries.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// A layer with what a SquashFS could lose.
fn hard_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |path: &str, kind: tar::EntryType, mode: u32, id: u64, link: Option<&str>, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(id);
        header.set_gid(id);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        match link {
            Some(target) => builder.append_link(&mut header, path, target).unwrap(),
            None => builder.append_data(&mut header, path, content).unwrap(),
        }
    };
    put("bin/", tar::EntryType::Directory, 0o755, 0, None, b"");
    put("bin/su", tar::EntryType::Regular, 0o4755, 0, None, b"program");
    put("bin/also", tar::EntryType::Link, 0o4755, 0, Some("bin/su"), b"");
    put("secret/", tar::EntryType::Directory, 0o700, 7, None, b"");
    put("secret/-f", tar::EntryType::Regular, 0o640, 7, None, &[0; 300_000]);
    put("link", tar::EntryType::Symlink, 0o777, 0, Some("bin/su"), b"");
    put("pipe", tar::EntryType::Fifo, 0o600, 7, None, b"");
    builder.append_pax_extensions([("SCHILY.xattr.user.colour", &b"blue"[..])]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(1);
    header.set_mtime(1_600_000_000);
    builder.append_data(&mut header, "coloured", &b"x"[..]).unwrap();
    builder.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_one_file_and_unfolds_to_what_it_was() {
    let (one, plain) = (place_of(Limits::default(), Layout::Squashfs), place());
    let pulled = async |place: &Place| {
        place.layout("layout", &[hard_layer()]);
        place.pull(&format!("oci:{}", place.path("layout").display())).await.unwrap()
    };
    let (packed, folder) = (pulled(&one).await, pulled(&plain).await);
    assert_eq!(packed.config, folder.config);
    let name = format!("{}.sqfs", packed.image_ref.folder);
    assert_eq!(names_in(&one.path("store")), std::slice::from_ref(&name));
    let listed = one.store.list().unwrap();
    assert_eq!(listed[0].takes.map(|(_, inodes)| inodes), Some(1));
    assert_eq!(listed[0].layout, Layout::Squashfs);
    // The other layout has it side by side, with the same files to the last owner, mode and time.
    one.store.unfold(&packed.image_ref).await.unwrap();
    assert_eq!(names_in(&one.path("store")), [packed.image_ref.folder.clone(), name]);
    let rootfs = one.store.rootfs(&packed.image_ref);
    let su = std::fs::metadata(rootfs.join("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.nlink(), su.mtime()), (0o4755, 2, 1_600_000_000));
    // Whether this file system keeps attributes is seen in the other layout.
    let colour = |store: &ImageStore, image: &PulledImage| {
        xattr::get(store.rootfs(&image.image_ref).join("coloured"), "user.colour").unwrap_or_default()
    };
    assert_eq!(colour(&one.store, &packed), colour(&plain.store, &folder));
    if is_root() {
        assert_eq!(std::fs::metadata(rootfs.join("secret/-f")).unwrap().uid(), 7);
    }
    let facts = |place: &Place, folder: &str| {
        let text = std::fs::read(place.path("store").join(folder).join("image.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["files"].clone()
    };
    let (ours, theirs) = (facts(&one, &packed.image_ref.folder), facts(&plain, &folder.image_ref.folder));
    assert_eq!((&ours["inodes"], &ours["bytes"]), (&theirs["inodes"], &theirs["bytes"]));
    assert!(names_in(&one.path("store/.tmp")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_found_in_both_layouts() {
    for layout in [Layout::Folder, Layout::Squashfs] {
        let place = place_of(Limits::default(), layout);
        place.layout("layout", &[hard_layer()]);
        let image = place.pull(&format!("oci:{}", place.path("layout").display())).await.unwrap().image_ref;
        assert_eq!(place.store.verify(&image).await.unwrap(), Verified::Good);
        match layout {
            Layout::Folder => std::fs::write(place.store.rootfs(&image).join("bin/su"), "programs").unwrap(),
            Layout::Squashfs => {
                use std::os::unix::fs::FileExt;
                let file = std::fs::File::options().write(true).open(place.store.file(&image)).unwrap();
                file.write_all_at(b"!", 200).unwrap();
            }
        }
        assert!(matches!(place.store.verify(&image).await.unwrap(), Verified::Damaged(_)), "{layout:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pod_has_is_not_removed_even_if_it_comes_in_between() {
    for layout in [Layout::Folder, Layout::Squashfs] {
        let place = place_of(Limits::default(), layout);
        place.layout("layout", &[hard_layer()]);
        let image = place.pull(&format!("oci:{}", place.path("layout").display())).await.unwrap().image_ref;
        let asked = std::sync::atomic::AtomicU32::new(0);
        let used = hpk_images::Uses::from([(image.folder.clone(), ["d/p".to_owned()].into())]);
        // Free at the first look; a pod has it at the second.
        let uses = || match asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Ok(hpk_images::Uses::new()),
            _ => Ok(used.clone()),
        };
        let refused = place.store.remove(&image, &uses).await.unwrap_err().to_string();
        assert!(refused.contains("d/p"), "{refused}");
        assert!(place.store.has(&image));
        place.store.remove(&image, &|| Ok(hpk_images::Uses::new())).await.unwrap();
        assert!(place.is_clean() && !place.store.has(&image));
        assert!(names_in(&place.path("store")).is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loaded_image_is_had_by_name_without_a_registry() {
    let place = place();
    place.layout("layout", &[hard_layer()]);
    let loaded = place.store.load(&place.path("layout").display().to_string(), Some("app:1"), &|_| ()).await.unwrap();
    assert_eq!(loaded.names, ["docker.io/library/app:1"]);
    let never = PullPolicy::Never;
    let had = place.store.pull("app:1", never, &Keyring::default(), &LocalImages::Anywhere, &|_| ()).await.unwrap();
    assert_eq!(had.image_ref, loaded.image.image_ref);
    // The file's own name is none of the image's now: its last name takes the image along.
    assert_eq!(place.store.list().unwrap()[0].names, ["docker.io/library/app:1"]);
    let bad = place.store.load(&place.path("layout").display().to_string(), Some("UPPER/x"), &|_| ()).await;
    assert!(bad.unwrap_err().to_string().contains("UPPER/x"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_may_end_with_its_last_files_last_byte() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(700);
    header.set_mode(0o644);
    header.set_mtime(0);
    builder.append_data(&mut header, "f", &[7; 700][..]).unwrap();
    let whole = builder.into_inner().unwrap();
    let place = place();
    let pull = async |name: &str, length: usize| {
        place.layout(name, &[whole[..length].to_vec()]);
        place.pull(&format!("oci:{}", place.path(name).display())).await
    };
    let image = pull("ends", 512 + 700).await.unwrap().image_ref;
    assert_eq!(std::fs::read(place.store.rootfs(&image).join("f")).unwrap(), [7; 700]);
    let error = pull("cut", 512 + 699).await.unwrap_err().to_string();
    assert!(error.contains("not a readable tar"), "{error}");
}
