//! `/logs/`: the files that the control plane's programs and hpk-kubelet log to.
//!
//! Upstream serves the node's /var/log. The Node's own programs are the user's here, and log to one folder without folders in
//! it. Links and other kinds of files are not followed.

use crate::respond::{Body, text, with_type};
use hyper::{Response, StatusCode};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Of a longer file its end is sent, in bytes.
const MOST: u64 = 16 << 20;

/// The list of files, or one of them. Blocking.
pub(crate) fn serve(folder: &Path, name: Option<&str>) -> Response<Body> {
    let answer = match name {
        None => list(folder).map(|html| with_type(StatusCode::OK, "text/html; charset=utf-8", html)),
        Some(name) => end(folder, name).map(|bytes| with_type(StatusCode::OK, "text/plain; charset=utf-8", bytes)),
    };
    match answer {
        Ok(response) => response,
        Err(error) if error.kind() == io::ErrorKind::NotFound => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {error}\n", folder.display())),
    }
}

/// As Go's file server writes it, which clients of upstream's kubelet read.
fn list(folder: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
            && is_plain(&name)
        {
            names.push(name);
        }
    }
    names.sort();
    let lines = names.iter().map(|name| format!("<a href=\"{name}\">{name}</a>\n"));
    Ok(format!("<pre>\n{}</pre>\n", lines.collect::<String>()))
}

/// Names that mean the same in a path, in a link and in HTML.
fn is_plain(name: &str) -> bool {
    !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn end(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = folder.join(name);
    if !is_plain(name) || !path.symlink_metadata()?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn got(folder: &Path, name: Option<&str>) -> (u16, String) {
        let response = serve(folder, name);
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("log");
        std::fs::create_dir_all(folder.join("folder")).unwrap();
        std::fs::write(dir.path().join("key"), "secret").unwrap();
        for (name, text) in [("b.log", "bee\n"), ("a.log", "ay\n"), (".hidden", "no"), ("<x>", "no")] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("../key", folder.join("link.log")).unwrap();
        let listed = "<pre>\n<a href=\"a.log\">a.log</a>\n<a href=\"b.log\">b.log</a>\n</pre>\n";
        assert_eq!(got(&folder, None).await, (200, listed.to_owned()));
        assert_eq!(got(&folder, Some("a.log")).await, (200, "ay\n".to_owned()));
        for name in ["../key", "link.log", "folder", ".hidden", "..", "", "no.log"] {
            assert_eq!(got(&folder, Some(name)).await.0, 404, "{name}");
        }
        assert_eq!(got(&dir.path().join("none"), None).await.0, 404);
    }

    #[tokio::test]
    async fn of_a_long_file_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("long.log")).unwrap();
        file.set_len(MOST).unwrap();
        std::io::Write::write_all(&mut &file, b"").unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"last", MOST).unwrap();
        let (status, text) = got(dir.path(), Some("long.log")).await;
        assert_eq!((status, text.len() as u64), (200, MOST));
        assert!(text.ends_with("last"));
    }
}
