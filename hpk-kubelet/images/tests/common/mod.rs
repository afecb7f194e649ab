//! A registry of the tests' own, what is pushed to it, and a store that pulls from it.

#![allow(dead_code, reason = "each file of tests uses some of it")]

use hpk_images::{
    ImageStore, Keyring, Limits, LocalImages, PullError, PullPolicy, PulledImage, Registries, StoreConfig, helper,
};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// user `alice`, password `secret`
const HTPASSWD: &str = "alice:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

pub(crate) struct Registry {
    process: Child,
    pub(crate) host: String,
    _folder: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A registry of our own. Fails loudly when Debian's docker-registry is not installed.
pub(crate) fn registry(auth: bool) -> Registry {
    // One at a time from the choice of a free port until it is bound: two cases must not choose the same.
    static STARTING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _starting = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let root = folder.path().display();
    let mut config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: \"{host}\"}}\n"
    );
    if auth {
        std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n"));
    }
    let file = folder.path().join("config.yml");
    std::fs::write(&file, config).unwrap();
    let process = Command::new("docker-registry")
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("docker-registry is missing: apt-get install docker-registry");
    let registry = Registry { process, host, _folder: folder };
    let up = || std::net::TcpStream::connect(&registry.host).is_ok();
    // It says nowhere that it listens.
    let came_up = (0..200).any(|_| {
        up() || {
            std::thread::sleep(Duration::from_millis(25));
            false
        }
    });
    assert!(came_up, "docker-registry did not come up on {}", registry.host);
    registry
}

pub(crate) enum Entry<'a> {
    File(&'a str, &'a [u8], u32, u64),
    Dir(&'a str, u32),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
}

pub(crate) fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_000_000_000);
        let (path, data): (&str, &[u8]) = match entry {
            Entry::File(path, data, mode, owner) => {
                header.set_mode(*mode);
                header.set_uid(*owner);
                header.set_gid(*owner);
                header.set_entry_type(tar::EntryType::Regular);
                (path, data)
            }
            Entry::Dir(path, mode) => {
                header.set_mode(*mode);
                header.set_entry_type(tar::EntryType::Directory);
                (path, b"")
            }
            Entry::Link(path, target) | Entry::Hard(path, target) => {
                header.set_mode(0o777);
                header.set_entry_type(match entry {
                    Entry::Link(..) => tar::EntryType::Symlink,
                    _ => tar::EntryType::Link,
                });
                header.set_link_name_literal(target).unwrap();
                (path, b"")
            }
            Entry::Device(path) => {
                header.set_mode(0o600);
                header.set_entry_type(tar::EntryType::Char);
                (path, b"")
            }
        };
        header.set_size(data.len() as u64);
        // By hand: the builder refuses the paths that an attacker would write.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub(crate) async fn push(reference: &str, layers: Vec<Vec<u8>>, auth: &RegistryAuth) {
    let config = br#"{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/x"],"User":"7"},
        "rootfs":{"type":"layers","diff_ids":[]}}"#;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let layers: Vec<_> = layers.into_iter().map(|l| ImageLayer::oci_v1_gzip(l, None)).collect();
    let config = Config::oci_v1(config.to_vec(), None);
    let reference = Reference::try_from(reference).unwrap();
    client.push(&reference, &layers, config, auth, None).await.unwrap();
}

pub(crate) fn store(root: &Path) -> ImageStore {
    store_with(root, Registries::default())
}

pub(crate) fn store_with(root: &Path, registries: Registries) -> ImageStore {
    ImageStore::new(StoreConfig {
        root: root.to_owned(),
        helper: helper::command_of(env!("CARGO_BIN_EXE_hpk-image").as_ref()),
        registries,
        limits: Limits::default(),
        layout: hpk_images::Layout::Folder,
    })
    .unwrap()
}

pub(crate) async fn pull(store: &ImageStore, image: &str, policy: PullPolicy) -> Result<PulledImage, PullError> {
    store.pull(image, policy, &Keyring::default(), &LocalImages::Anywhere, &|_| ()).await
}
