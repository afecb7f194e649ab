//! registries.conf and downloads that are cut off, against real registries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Entry, gzip, layer, pull, push, registry, store, store_with};
use hpk_images::{ConfFiles, Keyring, LocalImages, PullError, PullPolicy, Registries};
use oci_client::secrets::RegistryAuth;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

fn content(text: &str) -> Vec<Vec<u8>> {
    vec![gzip(&layer(&[Entry::File("v", text.as_bytes(), 0o644, 0)]))]
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// As a user whose registries.conf says so.
fn with_conf(home: &Path, text: &str) -> Registries {
    let folder = home.join(".config/containers");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("registries.conf"), text).unwrap();
    let home = home.display().to_string();
    Registries { conf: ConfFiles::of_user(|name| (name == "HOME").then(|| home.clone())), ..Registries::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_its_mirror_and_keeps_its_name() {
    let mirror = registry(false);
    push(&format!("{}/hub/library/app:1", mirror.host), content("mirrored"), &RegistryAuth::Anonymous).await;
    push(&format!("{}/team/app:1", mirror.host), content("of the team"), &RegistryAuth::Anonymous).await;
    push(&format!("{}/only:1", mirror.host), content("only here"), &RegistryAuth::Anonymous).await;
    let folder = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let host = &mirror.host;
    let text = format!(
        r#"
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "{closed}"
        [[registry.mirror]]
        location = "{host}/hub"
        [[registry]]
        prefix = "elsewhere.example/team"
        location = "{host}/team"
        [[registry]]
        location = "forbidden.example"
        blocked = true
        [aliases]
        only = "{host}/only"
        "#
    );
    let store = store_with(&folder.path().join("store"), with_conf(folder.path(), &text));
    for (image, said, id) in [
        ("app:1", "mirrored", "docker.io/library/app@"),
        ("docker.io/library/app:1", "mirrored", "docker.io/library/app@"),
        ("elsewhere.example/team/app:1", "of the team", "elsewhere.example/team/app@"),
        ("only:1", "only here", &format!("{host}/only@")),
    ] {
        let pulled = pull(&store, image, PullPolicy::Always).await.unwrap();
        assert_eq!(read(&store.rootfs(&pulled.image_ref).join("v")), said, "{image}");
        assert!(pulled.image_ref.id.starts_with(id), "{image}: {}", pulled.image_ref.id);
        assert!(pull(&store, image, PullPolicy::Never).await.is_ok(), "{image}");
    }
    let error = pull(&store, "forbidden.example/x:1", PullPolicy::Always).await.unwrap_err();
    assert!(matches!(&error, PullError::Forbidden { .. }) && error.to_string().contains("is blocked by"), "{error}");
    let error = pull(&store, "elsewhere.example/team/none:1", PullPolicy::Always).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    // What the file says now counts now; a fault of it is told, and hinders nothing that is there.
    with_conf(folder.path(), "[[registry]]\nlocation = 5");
    let error = pull(&store, "app:1", PullPolicy::Always).await.unwrap_err();
    assert!(error.to_string().contains("registries.conf: "), "{error}");
    assert!(pull(&store, "app:1", PullPolicy::IfNotPresent).await.unwrap().already_present);
}

/// An image that a mirror gave for credentials is for those who have them.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirrors_credentials_are_its_own() {
    let mirror = registry(true);
    let login = RegistryAuth::Basic("alice".to_owned(), "secret".to_owned());
    push(&format!("{}/app:1", mirror.host), content("mirrored"), &login).await;
    let folder = tempfile::tempdir().unwrap();
    let text = format!("[[registry]]\nprefix = \"far.example\"\nlocation = \"{}\"\ninsecure = true\n", mirror.host);
    let store = store_with(&folder.path().join("store"), with_conf(folder.path(), &text));
    let mut keyring = Keyring::default();
    let json = format!(r#"{{"auths":{{"{}":{{"username":"alice","password":"secret"}}}}}}"#, mirror.host);
    keyring.add_docker_config_json(json.as_bytes()).unwrap();
    let anywhere = LocalImages::Anywhere;
    store.pull("far.example/app:1", PullPolicy::Always, &keyring, &anywhere, &|_| ()).await.unwrap();
    assert!(store.present("far.example/app:1", &keyring, &anywhere).await.is_some());
    assert!(store.present("far.example/app:1", &Keyring::default(), &anywhere).await.is_none());
    let error = pull(&store, "far.example/app:1", PullPolicy::IfNotPresent).await.unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error}");
}

/// A way to a registry that ends after so many bytes of an answer, the first so many times that an answer is that long.
struct Cutting {
    host: String,
    /// Bytes of answers in all.
    passed: Arc<AtomicU64>,
    /// After a cut nobody is let in.
    shuts: Arc<AtomicBool>,
    /// Requests that began elsewhere than at the beginning.
    ranges: Arc<AtomicU32>,
}

fn cutting(registry: &str, after: u64, times: u32) -> Cutting {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let (passed, ranges, cuts) =
        (Arc::<AtomicU64>::default(), Arc::<AtomicU32>::default(), Arc::new(AtomicU32::new(times)));
    let (all, found, registry) = (Arc::clone(&passed), Arc::clone(&ranges), registry.to_owned());
    let shuts = Arc::<AtomicBool>::default();
    let shut = Arc::clone(&shuts);
    let was_cut = Arc::<AtomicBool>::default();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if shut.load(Ordering::SeqCst) && was_cut.load(Ordering::SeqCst) {
                continue;
            }
            let Ok(server) = TcpStream::connect(&registry) else { continue };
            let (mut requests, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let found = Arc::clone(&found);
            std::thread::spawn(move || {
                let mut buffer = [0; 16384];
                while let Ok(n @ 1..) = requests.read(&mut buffer) {
                    // Requests are short: each comes in one piece.
                    if String::from_utf8_lossy(&buffer[..n]).to_ascii_lowercase().contains("\r\nrange: bytes=") {
                        found.fetch_add(1, Ordering::SeqCst);
                    }
                    if to.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
                let _ = to.shutdown(Shutdown::Both);
            });
            let (mut server, mut client, all, cuts) = (server, client, Arc::clone(&all), Arc::clone(&cuts));
            let was_cut = Arc::clone(&was_cut);
            std::thread::spawn(move || {
                let (mut buffer, mut sent) = ([0; 4096], 0);
                while let Ok(n @ 1..) = server.read(&mut buffer) {
                    if client.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                    all.fetch_add(n as u64, Ordering::SeqCst);
                    sent += n as u64;
                    let cut = |left: u32| left.checked_sub(1);
                    if sent >= after && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, cut).is_ok() {
                        was_cut.store(true, Ordering::SeqCst);
                        break;
                    }
                }
                let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
            });
        }
    });
    Cutting { host, passed, shuts, ranges }
}

/// Bytes that no compression makes fewer.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(|| next().to_le_bytes()).flatten().take(length).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_off_goes_on_where_it_was() {
    let registry = registry(false);
    let noise = noise(3 << 20);
    let image = |host: &str| format!("{host}/big:1");
    let layers = vec![gzip(&layer(&[Entry::File("v", &noise, 0o644, 0)]))];
    let whole = layers[0].len() as u64;
    push(&image(&registry.host), layers, &RegistryAuth::Anonymous).await;

    // A few cuts: one pull lives through them.
    let folder = tempfile::tempdir().unwrap();
    let near = cutting(&registry.host, 400_000, 3);
    let pulled = pull(&store(folder.path()), &image(&near.host), PullPolicy::Always).await.unwrap();
    assert!(std::fs::read(store(folder.path()).rootfs(&pulled.image_ref).join("v")).unwrap() == noise);
    assert_eq!(near.ranges.load(Ordering::SeqCst), 3);
    let passed = near.passed.load(Ordering::SeqCst);
    assert!(passed < whole + 600_000, "{passed} bytes for {whole}");

    // Nothing more comes after the first megabyte: the pull fails, and the next one goes on.
    let folder = tempfile::tempdir().unwrap();
    let far = cutting(&registry.host, 1 << 20, 1);
    far.shuts.store(true, Ordering::SeqCst);
    let error = pull(&store(folder.path()), &image(&far.host), PullPolicy::Always).await.unwrap_err();
    assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{error}");
    let blobs = folder.path().join(".blobs");
    let part = || {
        let mut entries = std::fs::read_dir(&blobs).unwrap().flatten();
        entries.find(|entry| entry.path().extension().is_some_and(|end| end == "part"))
    };
    let had = part().expect("what came").metadata().unwrap().len();
    assert!(had > 900_000, "{had}");
    far.shuts.store(false, Ordering::SeqCst);
    let before = far.passed.load(Ordering::SeqCst);
    let pulled = pull(&store(folder.path()), &image(&far.host), PullPolicy::Always).await.unwrap();
    assert!(std::fs::read(store(folder.path()).rootfs(&pulled.image_ref).join("v")).unwrap() == noise);
    let more = far.passed.load(Ordering::SeqCst) - before;
    assert!(more < whole - had + 100_000, "{more} bytes for {whole}, of which {had} were there");
    assert!(part().is_none());
}
