//! How images are kept, whether that can work, and how fast the file system makes small files: that is what the layouts
//! differ in.

use super::Finding;
use crate::home;
use hpk_api::cluster::ClusterConfig;
use hpk_api::images::LayoutChoice;
use hpk_images::{Layout, packer, shared_by};
use std::path::Path;
use std::time::{Duration, Instant};

const CHECK: &str = "images";

/// The layout of images to come.
pub(super) fn layout() -> Finding {
    let Ok(home) = home::find() else { return Finding::warning(CHECK, "HPK_HOME is not known", "set HPK_HOME") };
    let cluster = std::fs::read(home.cluster_json()).ok();
    let cluster = cluster.and_then(|text| serde_json::from_slice::<ClusterConfig>(&text).ok());
    let choice = cluster.map(|cluster| cluster.images.layout).unwrap_or_default();
    let layout = Layout::of(choice, home.root());
    let speed = home.root().is_dir().then(|| files_per_second(home.root())).flatten();
    judge(choice, layout, shared_by(home.root()), packer(), speed)
}

/// Pure. `packer`: the program that makes one file, or why there is none.
fn judge(
    choice: LayoutChoice,
    layout: Layout,
    system: Option<&str>,
    packer: Result<String, String>,
    speed: Option<u64>,
) -> Finding {
    let why = match (choice, system) {
        (LayoutChoice::Auto, Some(system)) => format!(" (HPK_HOME is on {system})"),
        (LayoutChoice::Auto, None) => String::new(),
        _ => " (hpk up --image-layout)".to_owned(),
    };
    let speed = speed.map_or_else(String::new, |n| format!("; the file system makes {n} small files a second"));
    let found = format!("layout {}{why}{speed}", layout.name());
    match (layout, packer) {
        (Layout::Squashfs, Err(why)) => Finding::failed(CHECK, format!("{found}; {why}"), "see docs/guide/images.md"),
        (Layout::Folder, _) if system.is_some() => Finding::warning(
            CHECK,
            found,
            "hpk up --image-layout squashfs keeps an image in one file, which this file system bears better",
        ),
        (Layout::Squashfs, Ok(program)) => Finding::ok(CHECK, format!("{found}, packed by {program}")),
        (Layout::Folder, _) => Finding::ok(CHECK, found),
    }
}

/// Files that are made, at most.
const FILES: u32 = 200;
/// It is to be over by then.
const PATIENCE: Duration = Duration::from_secs(2);

/// None: it cannot be tried.
fn files_per_second(home: &Path) -> Option<u64> {
    let folder = home.join(format!(".doctor-{}", std::process::id()));
    std::fs::create_dir(&folder).ok()?;
    let begin = Instant::now();
    let mut made = 0;
    while made < FILES && begin.elapsed() < PATIENCE {
        if std::fs::write(folder.join(made.to_string()), b"x").is_err() {
            break;
        }
        made += 1;
    }
    let took = begin.elapsed();
    let _ = std::fs::remove_dir_all(&folder);
    let nanos = u64::try_from(took.as_nanos()).ok().filter(|n| *n > 0)?;
    (made > 0).then(|| u64::from(made) * 1_000_000_000 / nanos)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_layout_that_cannot_work_fails_and_a_bad_choice_is_told() {
        let no = || Err("there is no mksquashfs".to_owned());
        let yes = || Ok("/usr/bin/mksquashfs".to_owned());
        let verdict = |choice, layout, system, packer| judge(choice, layout, system, packer, None).verdict;
        use LayoutChoice::{Auto, Folder};
        assert_eq!(verdict(Auto, Layout::Squashfs, Some("NFS"), no()), Verdict::Failed);
        assert_eq!(verdict(Auto, Layout::Squashfs, Some("NFS"), yes()), Verdict::Ok);
        assert_eq!(verdict(Auto, Layout::Folder, None, no()), Verdict::Ok);
        assert_eq!(verdict(Folder, Layout::Folder, Some("Lustre"), yes()), Verdict::Warning);
        let told = judge(Auto, Layout::Squashfs, Some("NFS"), yes(), Some(150)).found;
        assert!(told.contains("NFS") && told.contains("150 small files"), "{told}");
    }

    #[test]
    fn nothing_stays_of_the_measurement() {
        let dir = tempfile::tempdir().unwrap();
        assert!(files_per_second(dir.path()).unwrap() > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
