//! The command line: what can be asked of `hpk`.

mod backup;
mod image;
mod up;

pub(crate) use backup::{Backup, Restore};
pub(crate) use image::{Image, ImageCommand, ImageList, ImageLoad, ImagePrune, ImagePull, ImageRm, ImageVerify};
pub(crate) use up::{DefaultMemory, DefaultTime, Encryption, LayoutChoice, Scratch, Switch, Up};

use crate::logs::Logs;
use crate::shell::Shell;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// A private Kubernetes on a Slurm cluster, for an ordinary user.
#[derive(Debug, Parser)]
#[command(
    name = "hpk",
    version,
    about,
    max_term_width = 100,
    after_help = "Examples:
  hpk doctor                      can this site run it?
  hpk up                          start, and wait until pods can run
  export KUBECONFIG=$(hpk kubeconfig)
  kubectl get nodes
  hpk down                        stop the control plane; jobs go on

State is kept in HPK_HOME (default ~/.hpk)."
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the control plane and hpk-kubelet, and wait until they serve
    Up(Box<Up>),
    /// Stop them in order; pods' jobs go on, and are found again by the next up
    Down(Down),
    /// Show what runs
    #[command(after_help = "Examples:
  hpk status                             exit code 0 when all serve, 3 when not
  hpk status --watch                     again at each change, until interrupted
  hpk status -o json | jq -r '.components[] | select(.phase != \"ready\") | .name'")]
    Status(Status),
    /// Show what the control plane's programs and hpk-kubelet have logged
    Logs(Logs),
    /// Start a shell, or a command, in which kubectl speaks to this cluster
    Shell(Shell),
    /// Save the cluster's objects, keys and choices in one file
    Backup(Backup),
    /// Begin again from a file of `hpk backup`
    Restore(Restore),
    /// Show pods and their Slurm jobs in one table
    Ps(Ps),
    /// Check what HPK needs on this site, with a remedy for what is missing
    Doctor(Doctor),
    /// Listen on the login node for a pod or a Service, until interrupted
    Expose(Expose),
    /// Run a command beside a rank of an MPI step, on its node
    Exec(Exec),
    /// Show, fetch, load, check and remove images
    Image(Image),
    /// Install an application into the cluster, such as Argo Workflows
    Install(crate::install::args::Install),
    /// Print the path of the kubeconfig
    #[command(after_help = "Example:\n  export KUBECONFIG=$(hpk kubeconfig)")]
    Kubeconfig,
    /// Print a completion script for a shell
    #[command(after_help = "Examples:
  hpk completions bash > ~/.local/share/bash-completion/completions/hpk
  hpk completions zsh > ~/.zfunc/_hpk           with fpath+=~/.zfunc before compinit in ~/.zshrc
  hpk completions fish > ~/.config/fish/completions/hpk.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Remove the installed files; what runs must be stopped before
    Uninstall(Uninstall),
    /// Write the manual pages to a folder
    #[command(hide = true)]
    Manual {
        /// The folder, such as ~/.local/share/man/man1
        dir: PathBuf,
    },
    /// The detached supervisor
    #[command(hide = true)]
    Supervise {
        /// HPK_HOME
        #[arg(long)]
        home: PathBuf,
        /// The lease that may be replaced
        #[arg(long)]
        free_lease: Option<String>,
    },
    /// The control plane, in its job
    #[command(hide = true)]
    Job {
        /// HPK_HOME
        #[arg(long)]
        home: PathBuf,
    },
    /// Make etcd's data folder ready
    #[command(hide = true)]
    EtcdData {
        /// HPK_HOME
        #[arg(long)]
        home: PathBuf,
    },
    /// Take snapshots of etcd's data
    #[command(hide = true)]
    EtcdSnapshots {
        /// HPK_HOME
        #[arg(long)]
        home: PathBuf,
    },
    /// The cluster's own objects, once the API server is ready
    #[command(hide = true)]
    Bootstrap {
        /// HPK_HOME
        #[arg(long)]
        home: PathBuf,
    },
    /// Become another program that ends with its parent
    #[command(hide = true)]
    ExecChild {
        /// The parent's process
        #[arg(long)]
        parent: u32,
        /// HPK_HOME
        #[arg(long)]
        home: PathBuf,
        /// Which component it is: what is left of an earlier one is ended before
        #[arg(long)]
        name: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
}

/// `hpk down`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk down            the control plane stops, pods go on
  hpk down --pods     also end all pods: nothing of the cluster runs any more")]
pub(crate) struct Down {
    /// Also end this cluster's pods: their Slurm jobs, or their processes on this machine
    #[arg(long)]
    pub pods: bool,
}

/// `hpk uninstall`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk uninstall             the programs go, ~/.hpk stays
  hpk uninstall --state     and ~/.hpk with all pods' volumes, logs and images")]
pub(crate) struct Uninstall {
    /// Also remove HPK_HOME: keys, the cluster's objects, logs, images and all data of claims. It cannot be brought back
    #[arg(long)]
    pub state: bool,
}

/// `hpk expose`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk expose service/web                  at a port that Kubernetes chooses and this prints
  hpk expose pod/jupyter 8888 --port 8888
  hpk expose -n demo service/web http -o json

It is a Service of its own, deleted when this ends. Whoever reaches the login node reaches it, other users too: for
yourself alone use kubectl port-forward. After a kill: kubectl delete services -l app.kubernetes.io/managed-by=hpk-expose")]
pub(crate) struct Expose {
    /// pod/NAME or service/NAME
    #[arg(value_name = "TARGET")]
    pub target: crate::target::Target,
    /// Its port, by number or name [default: the only one]
    #[arg(value_name = "PORT")]
    pub target_port: Option<String>,
    /// Port of the login node, 1024 or above [default: one is chosen]
    #[arg(short, long, value_name = "PORT")]
    pub port: Option<u16>,
    /// The target's namespace
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `hpk ps`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk ps                  pods of the namespace default
  hpk ps -A               of all namespaces
  hpk ps -n demo -o json | jq -r '.pods[] | select(.job.state == \"PENDING\") | .name'")]
pub(crate) struct Ps {
    /// The pods' namespace
    #[arg(short, long, value_name = "NAME", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Pods of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `hpk exec`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk exec --rank 5 solver -- ps aux
  hpk exec --rank 5 -it solver -- gdb -p 7

It is kubectl exec with rank:5 as the command's first word, which kubectl can be given from anywhere:
  kubectl exec -it solver -- rank:5 bash")]
pub(crate) struct Exec {
    /// Which rank, from 0
    #[arg(long, value_name = "N")]
    pub rank: u32,
    /// The pod's namespace [default: kubectl's]
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The step's container [default: the one that the pod's annotations name, or its first]
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Standard input is a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// The pod
    #[arg(value_name = "POD")]
    pub pod: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `hpk doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk doctor              what this login node has
  hpk doctor --job        and a compute node
  hpk doctor -o json      exit code 0 when HPK can run here")]
pub(crate) struct Doctor {
    /// Also submit a short job that checks a compute node (waits for it)
    #[arg(long)]
    pub job: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `hpk status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Show it again at each change, until interrupted or until the control plane is down
    #[arg(short, long)]
    pub watch: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// `-o`.
#[derive(Debug, Args)]
pub(crate) struct Output {
    /// For people or for programs
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples_that_it_understands() {
        use clap::CommandFactory;
        let all = Cli::command();
        let commands = all.get_subcommands().flat_map(|c| std::iter::once(c).chain(c.get_subcommands()));
        for command in commands.filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = help.lines().map(str::trim).filter(|l| l.starts_with("hpk ")).collect();
            assert!(!lines.is_empty() || help.contains("$(hpk "), "{} has no examples: {help:?}", command.get_name());
            for line in lines {
                // What comes after a wide gap is said to the reader; after a pipe or > the shell goes on.
                let said = line.split("   ").next().unwrap_or_default();
                let words = said.split_whitespace().take_while(|w| !["|", ">"].contains(w));
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{line}: {parsed:?}");
            }
        }
    }

    #[test]
    fn completions_know_every_command() {
        use clap::CommandFactory;
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hpk", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in
                ["up", "down", "status", "doctor", "expose", "kubeconfig", "completions", "ip-families", "prune"]
            {
                assert!(script.contains(word), "{shell}: no {word}");
            }
        }
    }

    #[test]
    fn log_sizes_are_quantities_and_a_refusal_names_the_flag() {
        let parse = |args: &[&str]| Cli::try_parse_from(["hpk", "up"].iter().chain(args));
        let cli = parse(&["--container-log-max-size", "1Mi", "--container-log-max-files=3"]).unwrap();
        let Command::Up(up) = cli.command else { panic!("{cli:?}") };
        assert_eq!((up.container_log_max_size, up.container_log_max_files), (Some(1 << 20), Some(3)));
        for (flag, bad) in [("--container-log-max-size", "10MB"), ("--container-log-max-files", "1")] {
            let refused = parse(&[flag, bad]).unwrap_err().to_string();
            assert!(refused.contains(flag) && refused.contains(bad), "{refused}");
        }
    }

    #[test]
    fn a_flag_for_the_api_server_may_begin_with_hyphens() {
        let cli = Cli::try_parse_from(["hpk", "up", "--apiserver-flag", "--v=4", "--apiserver-flag=--x=y"]).unwrap();
        let Command::Up(up) = cli.command else { panic!("{cli:?}") };
        assert_eq!(up.apiserver_flag, ["--v=4", "--x=y"]);
    }
}
