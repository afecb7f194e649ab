//! `hpk backup` and `hpk restore`: the whole state of a cluster in one file, and back.
//!
//! The file is a tar archive, compressed by gzip: `backup.json`, `etcd.db` (a snapshot of etcd's), `pki/`, `cluster.json`,
//! `control-plane.json` and `kubernetes.json`. It opens the cluster to whoever reads it.

use super::client::Etcd;
use super::record::Record;
use super::snapshots::Name;
use crate::cli::{Backup, Restore};
use crate::home::{self, private_dir};
use crate::in_job::ask;
use crate::progress::Progress;
use crate::site;
use crate::supervise::control::{Client, ControlError, Holder, Request};
use crate::up::{layout, lock_command};
use anyhow::{Context, Result, bail, ensure};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hpk_layout::Home;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const VERSION: u32 = 1;
const ABOUT: &str = "backup.json";
const DATA: &str = "etcd.db";
/// Which Kubernetes has stored the data.
const VERSIONED: &str = "kubernetes.json";
const PKI: &str = "pki";
/// Files of HPK_HOME that go along as they are.
const FILES: [&str; 2] = Home::CHOICES;
/// Another command may be at work.
const PATIENCE: Duration = Duration::from_secs(60);

/// `backup.json`.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    version: u32,
    cluster: String,
    host: String,
    /// RFC 3339.
    made: String,
}

/// `hpk backup`.
///
/// # Errors
/// The control plane is down, or a file cannot be written.
pub(crate) async fn save(args: &Backup) -> Result<ExitCode> {
    let (home, progress, host) = (home::find()?, Progress::new(), site::hostname()?);
    let asked = Client::ask(&home, &host, Request::Status).await;
    if matches!(asked, Err(ControlError::OtherHost { .. }))
        && let Some(code) = ask::go_there(&home)?
    {
        return Ok(code);
    }
    drop(asked.context("hpk backup asks etcd for its data")?);
    let layout = layout(home.clone())?;
    let made = jiff::Timestamp::now();
    let cluster = layout.cluster.cluster_name.clone();
    let file = args.file.clone().unwrap_or_else(|| {
        let day = made.strftime("%Y%m%d-%H%M%S");
        PathBuf::from(format!("hpk-backup-{}-{day}.tar.gz", hpk_api::nodes::label(&cluster)))
    });
    let at = || file.display().to_string();
    // Made beside, so that a file of this name is always whole.
    let part = file.with_added_extension("part");
    let out = File::options().write(true).create_new(true).mode(0o600).open(&part);
    let out = out.with_context(|| part.display().to_string())?;
    let _gone = Gone(part.clone());
    ensure!(!file.exists(), "{}: is there already: give another name", file.display());

    progress.waiting("asking etcd for its data".to_owned());
    let data = home.run().join(format!("backup-{}.db", std::process::id()));
    let _temporary = Gone(data.clone());
    let bytes = Etcd::new(&layout)?.snapshot(&data).await?;
    let about = About { version: VERSION, cluster, host, made: made.to_string() };
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::fast()));
    archive.mode(tar::HeaderMode::Deterministic);
    append(&mut archive, ABOUT, &serde_json::to_vec_pretty(&about)?).with_context(at)?;
    archive.append_path_with_name(&data, DATA).with_context(at)?;
    archive.append_dir_all(PKI, home.pki()).with_context(at)?;
    for name in FILES {
        archive.append_path_with_name(home.root().join(name), name).with_context(at)?;
    }
    // Absent when no hpk up has ended well yet.
    if home.kubernetes_json().exists() {
        archive.append_path_with_name(home.kubernetes_json(), VERSIONED).with_context(at)?;
    }
    archive.into_inner()?.finish()?.sync_all().with_context(at)?;
    fs::rename(&part, &file).with_context(at)?;
    progress.done(&format!("{} is written: {} KiB of etcd's data, keys and choices", file.display(), bytes >> 10));
    Ok(ExitCode::SUCCESS)
}

fn append(archive: &mut tar::Builder<GzEncoder<File>>, name: &str, content: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    archive.append_data(&mut header, name, content)
}

/// A file that is removed, if it is still there.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        let _absent = fs::remove_file(&self.0);
    }
}

/// `hpk restore`.
///
/// # Errors
/// The control plane runs, the file is no backup, or HPK_HOME has a cluster.
pub(crate) async fn restore(args: &Restore) -> Result<ExitCode> {
    let (home, progress) = (home::find()?, Progress::new());
    home::create(&home)?;
    let _lock = lock_command(&home, &progress, PATIENCE).await?;
    match Client::ask(&home, &site::hostname()?, Request::Status).await {
        Err(ControlError::NotRunning) => {}
        Ok(_) | Err(ControlError::Silent { .. }) => bail!("the control plane is running: run hpk down first"),
        Err(error) => return Err(error.into()),
    }
    if let Some(Holder { pid, host }) = Holder::of(&home.supervisor_lock()) {
        bail!("the control plane runs on {host} (process {pid}): run hpk down there first");
    }
    let record = Record::read(&home)?;
    let has_cluster = home.cluster_json().exists() || record.is_some() || Home::etcd_member(&home.etcd()).exists();
    if has_cluster && !args.replace {
        bail!(
            "there is a cluster in {} already: give --replace to put this one in its place, or set HPK_HOME to another folder",
            home.root().display()
        );
    }
    let new = home.restore();
    let _absent = fs::remove_dir_all(&new);
    private_dir(&new)?;
    let about = unpack(&args.file, &new).with_context(|| args.file.display().to_string())?;

    // From here to the record nothing is undone by a second try.
    let generation = record.as_ref().map_or(0, |record| record.generation) + 1;
    private_dir(&home.etcd_snapshots())?;
    let snapshot = home.etcd_snapshots().join(Name { generation, serial: 0 }.file());
    fs::rename(new.join(DATA), &snapshot).with_context(|| snapshot.display().to_string())?;
    let former = home.former_pki();
    let _absent = fs::remove_dir_all(&former);
    fs::rename(home.pki(), &former).with_context(|| home.pki().display().to_string())?;
    fs::rename(new.join(PKI), home.pki()).with_context(|| home.pki().display().to_string())?;
    for name in FILES {
        let to = home.root().join(name);
        fs::rename(new.join(name), &to).with_context(|| to.display().to_string())?;
    }
    fs::copy(home.cluster_json(), home.cluster_copy())?;
    // Not that of what was here.
    let _absent = fs::remove_file(home.kubernetes_json());
    let _absent = fs::rename(new.join(VERSIONED), home.kubernetes_json());
    // Last: with it the snapshot counts, and data that is there does not.
    let record = Record { generation, base: record.and_then(|record| record.base), host: about.host.clone() };
    record.write(&home)?;
    fs::remove_dir_all(&new).with_context(|| new.display().to_string())?;
    progress.done(&format!("cluster {} as it was on {} is in {}", about.cluster, about.made, home.root().display()));
    progress.done("start it with hpk up");
    Ok(ExitCode::SUCCESS)
}

/// Unpacks a backup whose every entry is one that `hpk backup` writes.
fn unpack(file: &Path, to: &Path) -> Result<About> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(file)?));
    let mut found = BTreeSet::new();
    for entry in archive.entries().context("this is no file of hpk backup")? {
        let mut entry = entry.context("this is no file of hpk backup, or it is cut off")?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        let names: Vec<_> = path.components().collect();
        let ours = match (names.as_slice(), kind) {
            ([Component::Normal(folder)], tar::EntryType::Directory) => *folder == PKI,
            ([Component::Normal(folder), Component::Normal(_)], tar::EntryType::Regular) => *folder == PKI,
            ([Component::Normal(name)], tar::EntryType::Regular) => {
                *name == ABOUT || *name == DATA || *name == VERSIONED || FILES.iter().any(|file| name == file)
            }
            _ => false,
        };
        ensure!(ours, "this is no file of hpk backup: it has {}", path.display());
        let target = to.join(&path);
        if kind == tar::EntryType::Directory {
            private_dir(&target)?;
        } else {
            private_dir(target.parent().unwrap_or(to))?;
            let mut out = File::options().write(true).create_new(true).mode(0o600).open(&target)?;
            std::io::copy(&mut entry, &mut out).context("it is cut off")?;
            out.sync_all()?;
        }
        found.insert(path);
    }
    for name in [ABOUT, DATA, "pki/ca.key"].iter().chain(&FILES) {
        ensure!(found.contains(Path::new(name)), "this is no file of hpk backup: it has no {name}");
    }
    let about: About = serde_json::from_slice(&fs::read(to.join(ABOUT))?).context(ABOUT)?;
    ensure!(about.version == VERSION, "its version is {}, this hpk reads {VERSION}", about.version);
    Ok(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(path: &Path, entries: &[(&str, &str)]) {
        let mut archive = tar::Builder::new(GzEncoder::new(File::create(path).unwrap(), Compression::fast()));
        for (name, content) in entries {
            append(&mut archive, name, content.as_bytes()).unwrap();
        }
        archive.into_inner().unwrap().finish().unwrap();
    }

    const WHOLE: [(&str, &str); 5] = [
        (ABOUT, r#"{"version": 1, "cluster": "site", "host": "login", "made": "2026-11-29T08:00:00Z"}"#),
        (DATA, "data"),
        ("pki/ca.key", "key"),
        ("cluster.json", "{}"),
        ("control-plane.json", "{}"),
    ];

    #[test]
    fn only_whole_backups_are_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let (file, to) = (dir.path().join("b.tar.gz"), dir.path().join("to"));
        let try_with = |entries: &[(&str, &str)]| {
            archive(&file, entries);
            let _absent = fs::remove_dir_all(&to);
            private_dir(&to).unwrap();
            unpack(&file, &to)
        };
        assert_eq!(try_with(&WHOLE).unwrap().cluster, "site");
        assert_eq!(fs::read_to_string(dir.path().join("to/pki/ca.key")).unwrap(), "key");
        for (missing, (name, _)) in WHOLE.iter().enumerate() {
            let mut entries = WHOLE.to_vec();
            entries.remove(missing);
            let said = try_with(&entries).unwrap_err().to_string();
            assert!(said.contains(name), "{said}");
        }
        for more in ["kubeconfig", "pki/deep/er", "log/x"] {
            let entries = [&WHOLE[..], &[(more, "")]].concat();
            let said = try_with(&entries).unwrap_err().to_string();
            assert!(said.contains("it has"), "{said}");
        }
        let newer = WHOLE[0].1.replace(": 1", ": 2");
        let entries = [&[(ABOUT, newer.as_str())], &WHOLE[1..]].concat();
        assert!(try_with(&entries).unwrap_err().to_string().contains("version is 2"));
        fs::write(dir.path().join("b.tar.gz"), "no archive").unwrap();
        assert!(unpack(&dir.path().join("b.tar.gz"), &to).is_err());
    }
}
