//! The command line of `hpk install`.

use clap::Args;
use std::path::PathBuf;

/// `hpk install`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk install --list
  hpk install argo --from argo-v4.0.5.tar
  hpk install argo --dry-run     the objects, and what kubectl would be told
  hpk install --remove argo      with its kinds, and all objects of these kinds

It is kubectl apply --server-side of upstream's manifest, with a few settings. Bundles are made from HPK's sources by
images/apps/build.sh APP. Pods read the images from HPK_HOME/apps, unless --registry says where they were pushed.")]
pub(crate) struct Install {
    /// Which one [default: show the list]
    #[arg(value_name = "APP")]
    pub app: Option<String>,
    /// Show the applications, and which of them are installed
    #[arg(long)]
    pub list: bool,
    /// The application's bundle: a folder, or a tar of one [default: the one that came with HPK]
    #[arg(long, value_name = "DIR|TAR")]
    pub from: Option<PathBuf>,
    /// Take images from there instead of files: HOST:PORT or HOST:PORT/PATH, to which they were pushed as NAME:VERSION
    #[arg(long, value_name = "REGISTRY")]
    pub registry: Option<String>,
    /// Print the objects on standard output, and what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take it away again, with its kinds and all objects of these kinds
    #[arg(long, requires = "app", conflicts_with_all = ["from", "registry", "dry_run", "list"])]
    pub remove: bool,
}
