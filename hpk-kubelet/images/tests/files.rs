//! Images in the user's own files, hostile ones too, unpacked by the real helper. As root, owners are checked as well.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

use backhand::compression::Compressor;
use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
use hpk_images::{ImageStore, Keyring, Limits, LocalImages, Progress, PullError, PullPolicy, PulledImage, Registries};
use hpk_images::{StoreConfig, helper};
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

struct Place {
    folder: tempfile::TempDir,
    store: ImageStore,
}

fn place_with(limits: Limits) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::new(StoreConfig {
        root: folder.path().join("store"),
        helper: helper::command_of(env!("CARGO_BIN_EXE_hpk-image").as_ref()),
        registries: Registries::default(),
        limits,
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
