//! `hpk backup` and `hpk restore`.

use clap::Args;
use std::path::PathBuf;

/// `hpk backup`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk backup                            hpk-backup-CLUSTER-DATE.tar.gz in this folder
  hpk backup ~/safe/cluster.tar.gz

The file has every Secret and key of the cluster: keep it where nobody else can read it. Data of volumes is not in it,
nor are images.")]
pub(crate) struct Backup {
    /// The file to write, which must not be there
    pub file: Option<PathBuf>,
}

/// `hpk restore`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk restore cluster.tar.gz                then: hpk up
  hpk restore --replace cluster.tar.gz      in place of the cluster that is in HPK_HOME

The control plane must be down. Objects are as they were when the backup was made; jobs of pods that it does not know are
cancelled some minutes after hpk up.")]
pub(crate) struct Restore {
    /// A file that hpk backup wrote
    pub file: PathBuf,
    /// There is a cluster in HPK_HOME already: put this in its place
    #[arg(long)]
    pub replace: bool,
}
