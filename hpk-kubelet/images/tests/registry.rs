//! The image store against a real registry (Debian's docker-registry on loopback) and real archives.
//!
//! The store's folder is examined by its content, not by what the store says. As root, owners are checked
//! too; the unprivileged path (a user namespace with one id) runs the command as uid 1000.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)]

mod common;

use common::{Entry, gzip, layer, pull, push, registry, store, store_with};
use hpk_images::{Keyring, LocalImages, Progress, PullError, PullPolicy, Registries};
use oci_client::secrets::RegistryAuth;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_applied_by_the_rules_and_stay_inside() {
    let registry = registry(false);
    let image = format!("{}/rules:1", registry.host);
    let base = layer(&[
        Entry::Dir("etc/", 0o755),
        Entry::File("etc/passwd", b"root", 0o644, 0),
        Entry::File("etc/gone", b"x", 0o644, 0),
        Entry::Dir("opaque/", 0o755),
        Entry::File("opaque/lower", b"x", 0o644, 0),
        Entry::Dir("usr/bin/", 0o755),
        Entry::Link("bin", "usr/bin"),
        Entry::File("bin/su", b"suid", 0o4755, 0),
        Entry::Hard("bin/su2", "usr/bin/su"),
        Entry::File("data", b"owned", 0o640, 7),
        Entry::Device("dev/null"),
    ]);
    let outside = tempfile::tempdir().unwrap();
    let escape = format!("{}/escape", outside.path().display());
    let target = outside.path().display().to_string();
    let top = layer(&[
        Entry::File("etc/.wh.gone", b"", 0o644, 0),
        Entry::File("opaque/upper", b"new", 0o644, 0),
        Entry::File("opaque/.wh..wh..opq", b"", 0o644, 0),
        Entry::File("../../../../../../../../evil", b"x", 0o644, 0),
        Entry::Link("out", &target),
        Entry::File("etc/passwd", b"new", 0o600, 0),
        Entry::File(&escape, b"x", 0o644, 0),
    ]);
    let through = layer(&[Entry::File("out/through", b"x", 0o644, 0)]);
    let zstd = ruzstd::encoding::compress_to_vec(&top[..], ruzstd::encoding::CompressionLevel::Fastest);
    push(&image, vec![gzip(&base), zstd, through], &RegistryAuth::Anonymous).await;

    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let pulled = pull(&store, &image, PullPolicy::Always).await.unwrap();
    assert_eq!(pulled.config.entrypoint, ["/bin/x"]);
    assert_eq!(pulled.config.user, "7");
    assert!(pulled.image_ref.id.starts_with(&format!("{}/rules@sha256:", registry.host)), "{:?}", pulled.image_ref);
    let root = store.rootfs(&pulled.image_ref);
    assert_eq!(read(root.join("etc/passwd")), "new");
    assert!(!root.join("etc/gone").exists() && !root.join("etc/.wh.gone").exists());
    assert_eq!(read(root.join("opaque/upper")), "new");
    assert!(!root.join("opaque/lower").exists());
    let su = std::fs::metadata(root.join("usr/bin/su")).unwrap();
    assert_eq!((su.permissions().mode() & 0o7777, su.nlink(), su.mtime()), (0o4755, 2, 1_000_000_000));
    assert!(!root.join("dev/null").exists());
    if is_root() {
        assert_eq!(std::fs::metadata(root.join("data")).unwrap().uid(), 7);
    }
    // What tried to get out is inside, and nothing is outside.
    assert_eq!(read(root.join("evil")), "x");
    assert!(std::fs::read_dir(outside.path()).unwrap().next().is_none());
    assert!(root.join(target.trim_start_matches('/')).join("through").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_pull_an_image_once() {
    let registry = registry(false);
    let image = format!("{}/once:1", registry.host);
    let noise: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let blob = gzip(&layer(&[Entry::File("noise", &noise, 0o644, 0)]));
    let size = blob.len() as u64;
    push(&image, vec![blob], &RegistryAuth::Anonymous).await;
    let folder = tempfile::tempdir().unwrap();
    // Two stores on one folder: two processes of a user, as far as their locks can tell.
    let stores = [store(folder.path()), store(folder.path())];
    let bytes = Arc::new(AtomicU64::new(0));
    let pulls = (0..12).map(|i| {
        let (store, image, bytes) = (stores[i % 2].clone(), image.clone(), bytes.clone());
        tokio::spawn(async move {
            let count = |p| {
                if let Progress::Downloaded { bytes: n } = p {
                    bytes.fetch_add(n, Ordering::SeqCst);
                }
            };
            store
                .pull(&image, PullPolicy::Always, &Keyring::default(), &LocalImages::Anywhere, &count)
                .await
                .unwrap()
                .image_ref
        })
    });
    let mut refs = std::collections::HashSet::new();
    for pull in pulls.collect::<Vec<_>>() {
        refs.insert(pull.await.unwrap());
    }
    assert_eq!(refs.len(), 1);
    let loaded = bytes.load(Ordering::SeqCst);
    assert!(loaded >= size && loaded < size + 4096, "{loaded} bytes for an image of {size}");
    assert_eq!(std::fs::read_dir(folder.path().join(".tmp")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_decide_whether_the_registry_is_asked() {
    let registry = registry(false);
    let image = format!("{}/policy:1", registry.host);
    let version = |text: &str| vec![gzip(&layer(&[Entry::File("v", text.as_bytes(), 0o644, 0)]))];
    push(&image, version("one"), &RegistryAuth::Anonymous).await;
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let never = pull(&store, &image, PullPolicy::Never).await.unwrap_err();
    assert_eq!(never.reason(), "ErrImageNeverPull");
    let first = pull(&store, &image, PullPolicy::IfNotPresent).await.unwrap();
    assert!(!first.already_present);
    push(&image, version("two"), &RegistryAuth::Anonymous).await;
    let again = pull(&store, &image, PullPolicy::IfNotPresent).await.unwrap();
    assert!(again.already_present && again.image_ref == first.image_ref);
    let second = pull(&store, &image, PullPolicy::Always).await.unwrap();
    assert_ne!(second.image_ref, first.image_ref);
    assert_eq!(read(store.rootfs(&second.image_ref).join("v")), "two");
    // The first is unused and old enough; the second is in use.
    let in_use = hpk_images::Uses::from([(second.image_ref.folder.clone(), ["d/p".to_owned()].into())]);
    let collected = store.collect(&|| Ok(in_use.clone()), Duration::ZERO).await.unwrap();
    assert_eq!(collected.images, [first.image_ref.folder]);
    let left: Vec<_> = store.list().unwrap().into_iter().map(|i| i.image_ref.folder).collect();
    assert_eq!(left, std::slice::from_ref(&second.image_ref.folder));
    assert_eq!(pull(&store, &image, PullPolicy::Never).await.unwrap().image_ref, second.image_ref);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_upstreams_reasons_and_name_the_image() {
    let registry = registry(true);
    let image = format!("{}/secret:1", registry.host);
    let login = RegistryAuth::Basic("alice".to_owned(), "secret".to_owned());
    push(&image, vec![gzip(&layer(&[Entry::Dir("x/", 0o755)]))], &login).await;
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (image, reason) in [
        (image.clone(), "ErrImagePull"),
        (format!("{closed}/x:1"), "RegistryUnavailable"),
        ("UPPER/case".to_owned(), "InvalidImageName"),
        ("oci-archive:/does/not/exist.tar".to_owned(), "ErrImagePull"),
    ] {
        let error = pull(&store, &image, PullPolicy::Always).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(&image), "{error}");
    }
    let denied = pull(&store, &image, PullPolicy::Always).await.unwrap_err();
    assert!(matches!(denied, PullError::Unauthorized { .. }), "{denied}");
    let mut keyring = Keyring::default();
    let json = format!(r#"{{"auths":{{"{}":{{"username":"alice","password":"secret"}}}}}}"#, registry.host);
    keyring.add_docker_config_json(json.as_bytes()).unwrap();
    // The registry speaks plain http: it must be listed before credentials go there.
    let error = store.pull(&image, PullPolicy::Always, &keyring, &LocalImages::Anywhere, &|_| ()).await.unwrap_err();
    assert_eq!(error.reason(), "RegistryUnavailable", "{error}");
    assert!(error.to_string().contains("credentials are sent by https only"), "{error}");
    let store =
        store_with(folder.path(), Registries { insecure: vec![registry.host.clone()], ..Registries::default() });
    store.pull(&image, PullPolicy::Always, &keyring, &LocalImages::Anywhere, &|_| ()).await.unwrap();
    // It is in the store now, for whoever has these credentials and not for others.
    let everywhere = LocalImages::Anywhere;
    let nobody = Keyring::default();
    let present = store.pull(&image, PullPolicy::IfNotPresent, &keyring, &everywhere, &|_| ()).await.unwrap();
    assert!(present.already_present && store.present(&image, &keyring, &everywhere).await.is_some());
    assert!(store.present(&image, &nobody, &everywhere).await.is_none());
    let error = store.pull(&image, PullPolicy::IfNotPresent, &nobody, &everywhere, &|_| ()).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
    let error = store.pull(&image, PullPolicy::Never, &nobody, &everywhere, &|_| ()).await.unwrap_err();
    assert!(matches!(error, PullError::NeverPull { .. }), "{error}");
    let error = store.pull("169.254.169.254/x:1", PullPolicy::Always, &nobody, &everywhere, &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("no place for a registry"), "{error}");
    let missing = format!("{}/none:1", registry.host);
    let error = store.pull(&missing, PullPolicy::Always, &keyring, &LocalImages::Anywhere, &|_| ()).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
}

/// An OCI layout with one layer, in a folder.
fn layout(folder: &Path, layer: &[u8], damage: bool) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let output = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map(|mut c| {
            c.stdin.take().unwrap().write_all(bytes).unwrap();
            c.wait_with_output().unwrap()
        });
        let hex = String::from_utf8(output.unwrap().stdout).unwrap()[..64].to_owned();
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        (format!("sha256:{hex}"), bytes.len())
    };
    let (layer_digest, layer_size) = put(layer);
    let (config, config_size) = put(br#"{"config":{"Cmd":["sh"]}}"#);
    let (manifest, size) = put(
        format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{config}","size":{config_size}}},"layers":[{{"digest":"{layer_digest}","size":{layer_size}}}]}}"#
        )
        .as_bytes(),
    );
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{manifest}","size":{size}}}]}}"#);
    std::fs::write(folder.join("index.json"), index).unwrap();
    if damage {
        let path = blobs.join(&layer_digest["sha256:".len()..]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_and_archives_are_read_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
    let bytes = gzip(&layer(&[Entry::File("hello", b"hi", 0o644, 0)]));
    layout(&good, &bytes, false);
    layout(&bad, &bytes, true);
    let archive = folder.path().join("good.tar");
    let tar = Command::new("tar").arg("-C").arg(&good).arg("-cf").arg(&archive).arg(".").status().unwrap();
    assert!(tar.success());
    let store = store(&folder.path().join("store"));
    let from_folder = pull(&store, &format!("oci:{}", good.display()), PullPolicy::IfNotPresent).await.unwrap();
    let name = format!("oci-archive:{}", archive.display());
    let from_tar = pull(&store, &name, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(from_folder.image_ref.folder, from_tar.image_ref.folder);
    assert_eq!(read(store.rootfs(&from_tar.image_ref).join("hello")), "hi");
    assert!(pull(&store, &name, PullPolicy::IfNotPresent).await.unwrap().already_present);
    let error = pull(&store, &format!("oci:{}", bad.display()), PullPolicy::Always).await.unwrap_err();
    assert!(matches!(error, PullError::Digest { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_user_without_subordinate_ids_can_pull() {
    if !is_root() {
        eprintln!("NOT RUN: becoming uid 1000 needs root; the other cases ran as an ordinary user already");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let image = folder.path().join("image");
    layout(&image, &gzip(&layer(&[Entry::File("a/b", b"x", 0o4711, 33)])), false);
    let program = folder.path().join("hpk-image");
    std::fs::copy(env!("CARGO_BIN_EXE_hpk-image"), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(&program)
        .arg("pull")
        .arg(format!("oci:{}", image.display()))
        .arg(folder.path().join("store"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let rootfs = text.lines().nth(1).unwrap();
    let meta = std::fs::metadata(Path::new(rootfs).join("a/b")).unwrap();
    assert_eq!((meta.uid(), meta.permissions().mode() & 0o7777), (1000, 0o4711));
}
