//! The cache of downloaded layers: one file per digest, complete and verified or not there at all.

use crate::error::SourceError;
use crate::lock;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// `images/.blobs`.
pub(crate) struct Blobs {
    folder: PathBuf,
    locks: PathBuf,
}

/// `sha256:<64 hex>` → `sha256-<hex>`; anything else is refused, so that a digest can be a file name.
pub(crate) fn folder_name(digest: &str) -> Result<String, SourceError> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(format!("sha256-{}", hex.to_ascii_lowercase()))
        }
        _ => Err(SourceError::InvalidImage {
            what: "digest".to_owned(),
            cause: "it is not sha256:<64 hex digits>".to_owned(),
        }),
    }
}

/// Digest of bytes in memory.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// `sha256:` and the digits of a hash.
pub(crate) fn hex(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Digest of all that a reader has; blocking.
pub(crate) fn digest_of_reader(mut reader: impl std::io::Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Fails unless `bytes` have the digest.
pub(crate) fn verify(expected: &str, bytes: &[u8]) -> Result<(), SourceError> {
    let actual = digest_of(bytes);
    if actual == expected { Ok(()) } else { Err(SourceError::Digest { expected: expected.to_owned(), actual }) }
}

impl Blobs {
    pub(crate) fn new(folder: PathBuf, locks: PathBuf) -> Self {
        Self { folder, locks }
    }

    /// The blob's file, fetched first when it is not there. `fetch` writes the path it is given, or what is missing there: a
    /// fetch that was cut off goes on where it was, now or at the next try. Whatever it is made of, the digest is that of all.
    pub(crate) async fn ensure<F, Fut>(&self, digest: &str, fetch: F) -> Result<PathBuf, SourceError>
    where
        F: Fn(PathBuf) -> Fut,
        Fut: Future<Output = Result<(), SourceError>>,
    {
        let name = folder_name(digest)?;
        let path = self.folder.join(&name);
        let lock_path = self.locks.join(format!("blob-{name}"));
        let _lock = lock::acquire(lock_path.clone()).await.map_err(SourceError::io("lock", lock_path))?;
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            // A use makes it younger in the eyes of the collector.
            touch(&path);
            return Ok(path);
        }
        let part = self.folder.join(format!("{name}.part"));
        let gone_on = tokio::fs::metadata(&part).await.is_ok_and(|meta| meta.len() > 0);
        let get = || async {
            fetch(part.clone()).await?;
            self.check(digest, &part).await
        };
        let mut got = get().await;
        if gone_on && matches!(got, Err(SourceError::Digest { .. })) {
            // The earlier part was damaged, as by a machine that went down.
            tokio::fs::remove_file(&part).await.map_err(SourceError::io("remove", &part))?;
            got = get().await;
        }
        if let Err(e) = got {
            // What came stays where more of it may come; else nothing half-made does.
            if !matches!(e, SourceError::Unavailable(_)) {
                // A failed removal is harmless: the digest is that of all, next time too.
                let _ = tokio::fs::remove_file(&part).await;
            }
            return Err(e);
        }
        tokio::fs::rename(&part, &path).await.map_err(SourceError::io("rename", &part))?;
        Ok(path)
    }

    async fn check(&self, digest: &str, part: &Path) -> Result<(), SourceError> {
        let file = part.to_owned();
        let actual = tokio::task::spawn_blocking(move || digest_of_reader(std::fs::File::open(file)?))
            .await
            .map_err(|e| SourceError::Other(e.to_string()))?
            .map_err(SourceError::io("read", part))?;
        if actual == digest.to_ascii_lowercase() {
            Ok(())
        } else {
            Err(SourceError::Digest { expected: digest.to_owned(), actual })
        }
    }
}

/// Sets the modification time to now; best effort.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = std::fs::File::options().append(true).open(path) {
        let _ = file.set_modified(std::time::SystemTime::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn blobs(dir: &Path) -> Blobs {
        Blobs::new(dir.to_owned(), dir.to_owned())
    }

    #[test]
    fn digests_are_file_names_or_refused() {
        assert!(folder_name(HELLO).unwrap().starts_with("sha256-2cf2"));
        for bad in ["", "sha256:", "sha256:../../x", "md5:00", "sha256:zz", "sha512:00"] {
            assert!(folder_name(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn many_askers_fetch_once() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let fetches = AtomicU32::new(0);
        let ask = || {
            blobs.ensure(HELLO, |part| {
                fetches.fetch_add(1, Ordering::SeqCst);
                async move { tokio::fs::write(part, "hello").await.map_err(SourceError::io("write", "x")) }
            })
        };
        let (a, b, c) = tokio::join!(ask(), ask(), ask());
        assert_eq!(std::fs::read(a.unwrap()).unwrap(), b"hello");
        assert!(b.is_ok() && c.is_ok());
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_was_cut_off_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let append = |text: &'static str, end: fn() -> Result<(), SourceError>| {
            move |part: PathBuf| async move {
                use std::io::Write;
                let file = std::fs::File::options().append(true).create(true).open(part);
                file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(SourceError::io("write", "x"))?;
                end()
            }
        };
        let cut: fn() -> _ = || Err(SourceError::Unavailable("cut".to_owned()));
        assert!(blobs.ensure(HELLO, append("he", cut)).await.is_err());
        let path = blobs.ensure(HELLO, append("llo", || Ok(()))).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        // A part that is not what it should be is thrown away, and the whole is fetched once more.
        std::fs::remove_file(&path).unwrap();
        assert!(blobs.ensure(HELLO, append("xx", cut)).await.is_err());
        blobs.ensure(HELLO, append("hello", || Ok(()))).await.unwrap();
        // What cannot be helped by more of it leaves nothing.
        std::fs::remove_file(&path).unwrap();
        let full: fn() -> _ = || {
            Err(SourceError::Io { action: "write", path: "x".into(), source: std::io::ErrorKind::StorageFull.into() })
        };
        assert!(blobs.ensure(HELLO, append("he", full)).await.is_err());
        assert!(!path.with_extension("part").exists());
    }

    #[tokio::test]
    async fn wrong_content_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let result = blobs(dir.path())
            .ensure(HELLO, |part| async move {
                tokio::fs::write(part, "hellO").await.map_err(SourceError::io("write", "x"))
            })
            .await;
        assert!(matches!(result, Err(SourceError::Digest { .. })));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|n| n.to_string_lossy().starts_with("blob-")), "{left:?}");
    }
}
