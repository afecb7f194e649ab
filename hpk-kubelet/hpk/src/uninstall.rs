//! `hpk uninstall`: removes the installed files that `share/hpk/installed` lists, and with `--state` HPK_HOME.
//!
//! Nothing else below the prefix is touched: it may be `~/.local`, where other programs live too.

use crate::cli;
use crate::down::pod_jobs;
use crate::home;
use crate::progress::Progress;
use crate::state::place;
use crate::supervise::control::Holder;
use anyhow::{Context, Result, bail, ensure};
use hpk_layout::Home;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

/// `hpk uninstall`.
pub(crate) async fn run(args: &cli::Uninstall) -> Result<ExitCode> {
    let (home, install, progress) = (home::find()?, home::install()?, Progress::new());
    if home.root().exists() {
        nothing_runs(&home, &progress)?;
    }
    let list = install.installed();
    let text = fs::read_to_string(&list).with_context(|| {
        format!(
            "{}: the list of installed files is missing, so remove them by hand as docs/guide/install.md lists them",
            list.display()
        )
    })?;
    let files = listed(&text)?;
    if args.state && home.root().exists() {
        progress.waiting(format!("removing {}", home.root().display()));
        place::remove(&home)?;
        let code = hpk_sys::userns::remove_tree(home.root())?;
        ensure!(code == 0, "{}: not all of it could be removed; try again, or rm -r it", home.root().display());
        progress.done(&format!("{} is removed", home.root().display()));
    }
    let removed = remove(install.prefix(), &files)?;
    progress.done(&format!("{removed} files of HPK are removed from {}", install.prefix().display()));
    if !args.state && home.root().exists() {
        progress.done(&format!(
            "{} stays, with the cluster's state (rm -r it, or install again and hpk up)",
            home.root().display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// A control plane or a job of a pod would miss its programs.
fn nothing_runs(home: &Home, progress: &Progress) -> Result<()> {
    if let Some(Holder { pid, host }) = Holder::of(&home.supervisor_lock()) {
        bail!("the control plane runs on {host} (process {pid}): stop it with hpk down --pods");
    }
    match pod_jobs(home) {
        Ok(jobs) => ensure!(jobs.is_empty(), "{} jobs of pods go on: end them with hpk down --pods", jobs.len()),
        Err(error) => progress.done(&format!("cannot tell which jobs run: {error}")),
    }
    Ok(())
}

/// The files of a list, each a line, below the prefix.
fn listed(text: &str) -> Result<Vec<PathBuf>> {
    let files: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
    for file in &files {
        let plain = file.components().all(|c| matches!(c, Component::Normal(_)));
        ensure!(plain && file.components().count() > 1, "share/hpk/installed: {:?} is no file of HPK", file.display());
    }
    Ok(files)
}

/// Removes the files, and folders that hold nothing any more. How many files there were.
fn remove(prefix: &Path, files: &[PathBuf]) -> Result<usize> {
    let mut removed = 0;
    let mut folders = BTreeSet::new();
    for file in files.iter().map(PathBuf::as_path).chain([Path::new("share/hpk/installed")]) {
        let path = prefix.join(file);
        match fs::remove_file(&path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
        folders.extend(file.ancestors().skip(1).filter(|f| f.components().count() > 0).map(|f| prefix.join(f)));
    }
    // The pods' parent image has empty folders, which no file names.
    for own in ["share/hpk", "libexec/hpk"] {
        collect(&prefix.join(own), &mut folders);
    }
    // Deepest first. One that is not empty holds what is not HPK's.
    for folder in folders.iter().rev() {
        match fs::remove_dir(folder) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {}
            Err(error) => return Err(error).with_context(|| folder.display().to_string()),
        }
    }
    Ok(removed)
}

fn collect(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    found.insert(folder.to_owned());
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        collect(&entry.path(), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_list_names_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = tmp.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for path in ["bin/hpk", "bin/other", "libexec/hpk/hpk-pause", "share/hpk/installed", "share/man/man1/hpk.1"] {
            put(path);
        }
        fs::create_dir_all(tmp.path().join("share/hpk/pause/proc")).unwrap();
        let files = listed("bin/hpk\nlibexec/hpk/hpk-pause\nshare/man/man1/hpk.1\nshare/hpk/gone\n").unwrap();
        assert_eq!(remove(tmp.path(), &files).unwrap(), 4);
        let left: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["bin"], "folders of HPK alone go");
        assert!(tmp.path().join("bin/other").exists());
    }

    #[test]
    fn a_list_that_leads_out_of_the_prefix_is_refused() {
        for text in ["../x/y\n", "/etc/passwd\n", "bin\n", "bin/../../x\n"] {
            assert!(listed(text).is_err(), "{text}");
        }
    }
}
