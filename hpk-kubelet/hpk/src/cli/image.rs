//! The command line of `hpk image`.

use super::{LayoutChoice, Output};
use clap::{Args, Subcommand};

/// `hpk image`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image list
  hpk image pull busybox:1
  hpk image load app.tar --name app:1
  hpk image prune --older-than 7d

Pods' images are in HPK_HOME/images. No command takes away what a pod has: whichever node it runs on, its folder in
HPK_HOME/pods says which images are its.")]
pub(crate) struct Image {
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// `hpk image …`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Show the images with their size, inodes and the pods that have them
    List(ImageList),
    /// Fetch images from a registry, before pods ask for them
    Pull(ImagePull),
    /// Take an image from a file, for pods to have by a name: no registry is asked
    Load(ImageLoad),
    /// Remove images that no pod has
    Rm(ImageRm),
    /// Remove all images that no pod has, and cached layers
    Prune(ImagePrune),
    /// Check images against what was written down when they were made
    Verify(ImageVerify),
}

/// `hpk image list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image list
  hpk image list -o json | jq -r '.images[] | select(.used_by == []) | .id'")]
pub(crate) struct ImageList {
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `hpk image pull`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image pull busybox:1
  hpk image pull registry.site:5000/group/app:2 quay.io/org/tool@sha256:0123…

Credentials are yours, from where podman login, docker login and apptainer registry login keep them. A pod that uses
such an image needs them too, as an imagePullSecret.")]
pub(crate) struct ImagePull {
    /// As a pod names them; also oci-archive:/FILE, docker-archive:/FILE, oci:/FOLDER and /FILE.sif
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
    /// How they are kept, unless they are there already [default: as hpk up --image-layout says]
    #[arg(long, value_name = "LAYOUT", value_enum)]
    pub layout: Option<LayoutChoice>,
}

/// `hpk image load`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image load busybox.tar                    by docker save or podman save: it has its name in it
  hpk image load oci-layout --name app:1
  hpk image load tool.sif --name tool:1
  hpk image load oci-archive:/data/all.tar:v2 --name all:v2")]
pub(crate) struct ImageLoad {
    /// An OCI layout (folder or tar), a docker archive or a SIF
    #[arg(value_name = "FILE")]
    pub file: String,
    /// The name by which pods have it [default: those in the file]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How it is kept, unless it is there already [default: as hpk up --image-layout says]
    #[arg(long, value_name = "LAYOUT", value_enum)]
    pub layout: Option<LayoutChoice>,
}

/// `hpk image rm`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image rm busybox:1            one of several names: the name goes; the only one: the image
  hpk image rm sha256:0123456789ab")]
pub(crate) struct ImageRm {
    /// A name, or a digest or its beginning
    #[arg(required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

/// `hpk image prune`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image prune --dry-run
  hpk image prune
  hpk image prune --older-than 7d")]
pub(crate) struct ImagePrune {
    /// Leave what pods had within this time, such as 90s, 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = age, default_value = "0s")]
    pub older_than: std::time::Duration,
    /// Only say which images would go
    #[arg(long)]
    pub dry_run: bool,
}

/// `hpk image verify`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk image verify                  exit code 1 when one is damaged
  hpk image verify busybox:1

Of a SquashFS file all bytes are checked, of a folder names, modes, owners, lengths and times of all its files.")]
pub(crate) struct ImageVerify {
    /// A name, or a digest or its beginning [default: all images]
    #[arg(value_name = "IMAGE")]
    pub names: Vec<String>,
}

fn age(text: &str) -> Result<std::time::Duration, String> {
    let bad = || "must be a number with a unit: 90s, 30m, 12h or 7d".to_owned();
    let unit = text.chars().last().ok_or_else(bad)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
    number.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        assert_eq!(age("7d"), Ok(std::time::Duration::from_secs(604_800)));
        assert_eq!(age("0s"), Ok(std::time::Duration::ZERO));
        for bad in ["", "7", "d", "-1d", "1w", "1.5h", "99999999999999999d", "7ä"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
