//! `hpk etcd-data`, before etcd starts: its data folder is made ready, from where the data is.

use super::begin::{self, Begin, Found};
use super::record::{self, Generation, Record};
use super::{place, snapshots};
use crate::components::{self, Layout};
use crate::site;
use anyhow::{Context, Result, bail, ensure};
use hpk_layout::Home;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is added to the revision of restored data. Whoever watches has seen revisions that came after the snapshot; with
/// this each new one is newer than those.
const BUMP: u64 = 1_000_000_000;
/// A database file above this size, bytes, is made anew without its gaps.
const DEFRAGMENT: u64 = 128 << 20;

/// Makes the data folder ready.
///
/// # Errors
/// With the remedy, when there is no data that may be used.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    let (home, target) = (&layout.home, layout.etcd_data());
    let record = Record::read(home)?;
    let generation = record.as_ref().map_or(0, |record| record.generation);
    let base = layout.control_plane.etcd_base.clone();
    let data = on_this_machine(home, target, record.as_ref())?;
    let names = snapshots::list(&home.etcd_snapshots())?;
    let found = Found {
        target,
        generation,
        data: &data,
        unused: record::is_unused(target, generation)?,
        snapshot: names.last().copied(),
    };
    let decided = begin::begin(&found);
    let told = |text: String| hpk_api::say!("{} {text}", jiff::Timestamp::now());
    match &decided {
        Begin::Continue => {
            defragment(layout, target);
            return Ok(());
        }
        // Data that has always been in HPK_HOME needs no record.
        Begin::Fresh if base.is_none() && record.is_none() => return Ok(()),
        Begin::Fresh => {
            told(format!("a new cluster, in {}", target.display()));
            crate::home::private_dir(target)?;
        }
        Begin::Move(from) => {
            told(format!("the data moves from {} to {}", from.display(), target.display()));
            let made = made_beside(target)?;
            copy(from, &made)?;
            put(&made, target)?;
        }
        Begin::Restore(name) => {
            let file = home.etcd_snapshots().join(name.file());
            told(format!("the data is restored from {} ({} old)", file.display(), age(&file)));
            let made = made_beside(target)?;
            restore(layout, &file, &made)?;
            put(&made, target)?;
        }
        Begin::Lost => {
            let host = record.map(|record| record.host).unwrap_or_default();
            bail!(
                "etcd's data is on {host} and there is no snapshot of it in {}: run hpk up there, or hpk restore FILE \
                 with a file of hpk backup's; to begin with an empty cluster, remove {}",
                home.etcd_snapshots().display(),
                home.etcd_record().display()
            );
        }
    }
    let next = generation + 1;
    // The data first: a record of a generation that no data has would hide the data.
    record::set_generation(target, next)?;
    Record { generation: next, base, host: site::hostname()? }.write(home)?;
    if let Begin::Move(from) = decided {
        fs::remove_dir_all(&from).with_context(|| from.display().to_string())?;
        crate::home::private_dir(&home.etcd())?;
    }
    Ok(())
}

/// Data folders of the cluster that this machine may have, with their generations.
fn on_this_machine(home: &Home, target: &Path, record: Option<&Record>) -> Result<Vec<(PathBuf, Generation)>> {
    let mut folders = vec![target.to_owned(), home.etcd()];
    if let Some(base) = record.and_then(|record| record.base.as_deref()).filter(|base| base.is_dir()) {
        folders.push(place::folder(home, Some(base))?);
    }
    folders.dedup();
    let mut data = Vec::new();
    for folder in folders {
        if let Some(generation) = record::generation_of(&folder)? {
            data.push((folder, generation));
        }
    }
    Ok(data)
}

/// The folder in which data is made, empty.
fn made_beside(target: &Path) -> Result<PathBuf> {
    let made = target.with_added_extension("new");
    match fs::remove_dir_all(&made) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| made.display().to_string()),
        _ => Ok(made),
    }
}

/// Puts finished data in its place. What was there, of an earlier generation, is kept once.
fn put(made: &Path, target: &Path) -> Result<()> {
    let former = target.with_added_extension("former");
    if Home::etcd_member(target).exists() {
        let _absent = fs::remove_dir_all(&former);
        fs::rename(target, &former).with_context(|| target.display().to_string())?;
    } else if target.exists() {
        fs::remove_dir_all(target).with_context(|| target.display().to_string())?;
    }
    fs::rename(made, target).with_context(|| target.display().to_string())
}

/// A whole folder of files and folders, each on disk when this returns.
fn copy(from: &Path, to: &Path) -> Result<()> {
    crate::home::private_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (source, copied) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&source, &copied)?;
        } else {
            fs::copy(&source, &copied).with_context(|| format!("{} to {}", source.display(), copied.display()))?;
            fs::File::open(&copied)?.sync_all()?;
        }
    }
    Ok(())
}

fn restore(layout: &Layout, snapshot: &Path, made: &Path) -> Result<()> {
    let peer = format!("https://127.0.0.1:{}", layout.control_plane.ports.etcd_peer);
    let parent = made.parent().unwrap_or(Path::new("/"));
    let mut command = tool(layout, &[(snapshot, "ro"), (parent, "rw")]);
    command.args(["snapshot", "restore"]).arg(snapshot);
    command.arg(format!("--data-dir={}", made.display()));
    command.args(["--name=hpk".to_owned(), format!("--initial-cluster=hpk={peer}")]);
    command.arg(format!("--initial-advertise-peer-urls={peer}"));
    command.args([format!("--bump-revision={BUMP}"), "--mark-compacted".to_owned()]);
    run_tool(command).with_context(|| format!("restoring {}", snapshot.display()))
}

/// Best effort: etcd serves well with gaps in its file.
fn defragment(layout: &Layout, data: &Path) {
    let size = fs::metadata(Home::etcd_member(data).join("snap/db")).map_or(0, |meta| meta.len());
    if size > DEFRAGMENT {
        let mut command = tool(layout, &[(data, "rw")]);
        command.arg("defrag").arg(format!("--data-dir={}", data.display()));
        let how = run_tool(command).map_or_else(|error| format!("{error:#}"), |()| "done".to_owned());
        hpk_api::say!("{} the database of {} MB is defragmented: {how}", jiff::Timestamp::now(), size >> 20);
    }
}

fn tool(layout: &Layout, binds: &[(&Path, &'static str)]) -> Command {
    components::image::tool(&layout.control_plane.programs, "etcdutl", binds)
}

fn run_tool(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("etcdutl: {}", command.get_program().display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.trim().lines().last().unwrap_or_default();
    ensure!(output.status.success(), "etcdutl: {}: {last}", output.status);
    Ok(())
}

fn age(file: &Path) -> String {
    let modified = fs::metadata(file).and_then(|meta| meta.modified()).ok();
    let seconds = modified.and_then(|at| at.elapsed().ok()).map_or(0, |age| age.as_secs());
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} minutes", seconds / 60),
        _ => format!("{} hours", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_takes_its_place_whole_and_what_was_there_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("etcd");
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("member/snap")).unwrap();
        for text in ["one", "two", "three"] {
            fs::write(source.join("member/snap/db"), text).unwrap();
            let made = made_beside(&target).unwrap();
            copy(&source, &made).unwrap();
            put(&made, &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("member/snap/db")).unwrap(), text);
            assert!(!made.exists());
        }
        assert_eq!(fs::read_to_string(dir.path().join("etcd.former/member/snap/db")).unwrap(), "two");
    }

    #[test]
    fn a_folder_without_a_database_is_no_data() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("etcd");
        assert_eq!(record::generation_of(&data).unwrap(), None);
        fs::create_dir_all(data.join("member/snap")).unwrap();
        assert_eq!(record::generation_of(&data).unwrap(), None);
        fs::write(Home::etcd_member(&data).join("snap/db"), "").unwrap();
        assert_eq!(record::generation_of(&data).unwrap(), Some(0));
        record::set_generation(&data, 7).unwrap();
        assert_eq!(record::generation_of(&data).unwrap(), Some(7));
        fs::write(dir.path().join("etcd.generation"), "x").unwrap();
        assert!(record::generation_of(&data).unwrap_err().to_string().contains("damaged"));
    }
}
