//! `hpk install`: an application of others, at a version that is known to run here.
//!
//! It owns `HPK_HOME/apps/<name>/`. What it does to the cluster is `kubectl apply --server-side` of upstream's manifest with
//! the settings of the list ([`catalog`]); it never speaks to the network itself.

pub(crate) mod args;
mod bundle;
mod catalog;

use crate::home::{self, private_dir, replace_file};
use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use catalog::{App, Images};
use hpk_layout::{Home, Install, app as app_file};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// `hpk install`.
pub(crate) fn run(args: &args::Install) -> Result<ExitCode> {
    let (home, install) = (home::find()?, home::install()?);
    let apps = catalog::list()?;
    let Some(name) = args.app.as_deref().filter(|_| !args.list) else {
        let mut out = std::io::stdout();
        for line in table(&apps, |app| installed(&home, &app.name)) {
            writeln!(out, "{line}")?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let app = catalog::find(apps, name).map_err(anyhow::Error::msg)?;
    ensure!(home.kubeconfig().exists(), "{}: there is no cluster yet: run hpk up", home.kubeconfig().display());
    let kubectl = Kubectl::new(&home, &install)?;
    if args.remove {
        return remove(&app, &home, &kubectl);
    }
    let from = source(args.from.as_deref(), &install, &app)?;
    let progress = Progress::new();
    let folder = home.app(&app.name);
    let parent = home.apps();
    private_dir(&parent)?;
    // In place by rename: an installation that goes on has its images meanwhile.
    let new = parent.join(format!(".{}.new", app.name));
    progress.waiting(format!("reading {}", from.display()));
    bundle::bring(&app, &from, &new)?;
    let images = match &args.registry {
        Some(registry) => Images::Registry(registry.clone()),
        None => Images::Files(folder.join(app_file::IMAGES)),
    };
    replace_file(&new.join(app_file::KUSTOMIZATION), app.kustomization(&images).to_string().as_bytes())?;
    replace_file(&new.join(app_file::NAMESPACE), app.namespace().to_string().as_bytes())?;
    let objects = kubectl.output(&["kustomize", &new.display().to_string()])?;
    replace_file(&new.join(app_file::OBJECTS), &objects)?;
    replace_file(&new.join(app_file::VERSION), app.version.as_bytes())?;
    let file = folder.join(app_file::OBJECTS).display().to_string();
    let steps = steps(&app, &file);
    if args.dry_run {
        bundle::remove(&new)?;
        for setting in &app.settings {
            let (kind, name) = (setting.target["kind"].as_str(), setting.target["name"].as_str());
            progress.done(&format!(
                "changes {} {}: {}",
                kind.unwrap_or_default(),
                name.unwrap_or("(all)"),
                setting.why
            ));
        }
        for step in &steps {
            progress.done(&format!("would run: kubectl {}", step.join(" ")));
        }
        std::io::stdout().write_all(&objects)?;
        return Ok(ExitCode::SUCCESS);
    }
    bundle::remove(&folder)?;
    fs::rename(&new, &folder).with_context(|| folder.display().to_string())?;
    for step in &steps {
        progress.waiting(format!("kubectl {}", step.join(" ")));
        kubectl.run(step).with_context(|| {
            let look = format!("kubectl -n {} get pods,events", app.namespace);
            format!(
                "{} is not ready; look at: {look}; then run this again, or hpk install --remove {}",
                app.name, app.name
            )
        })?;
    }
    progress.done(&format!("{} {} runs in the namespace {}", app.name, app.version, app.namespace));
    for program in &app.programs {
        progress.done(&format!("its command: {}", folder.join(app_file::BIN).join(&program.name).display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the bundle is: what the user says, or what came with HPK.
fn source(from: Option<&Path>, install: &Install, app: &App) -> Result<PathBuf> {
    if let Some(from) = from {
        return Ok(from.to_owned());
    }
    let beside = install.apps().join(app.bundle());
    ensure!(
        beside.is_dir(),
        "{} did not come with HPK: give its bundle as --from DIR or --from FILE.tar. HPK's sources make it, on a machine with \
         Go: images/apps/build.sh {}",
        app.name,
        app.name
    );
    Ok(beside)
}

/// What kubectl is told, in this order. Pure.
fn steps(app: &App, objects: &str) -> Vec<Vec<String>> {
    let words = |line: &[&str]| line.iter().map(|word| (*word).to_owned()).collect();
    vec![
        words(&["apply", "--server-side", "--force-conflicts", "--field-manager=hpk-install", "-f", objects]),
        words(&["wait", "-n", &app.namespace, "deployment", "--all", "--for=condition=Available", "--timeout=300s"]),
    ]
}

fn remove(app: &App, home: &Home, kubectl: &Kubectl) -> Result<ExitCode> {
    let folder = home.app(&app.name);
    let objects = folder.join(app_file::OBJECTS);
    if !objects.exists() {
        bail!("{} is not installed: {} is missing", app.name, objects.display());
    }
    let progress = Progress::new();
    progress.waiting(format!("removing {}", app.name));
    let words = ["delete", "--ignore-not-found", "-f", &objects.display().to_string(), "--timeout=300s"];
    kubectl.run(&words.map(str::to_owned))?;
    bundle::remove(&folder)?;
    progress.done(&format!("{} is removed, with its kinds and all objects of these kinds", app.name));
    Ok(ExitCode::SUCCESS)
}

/// The version that is installed.
fn installed(home: &Home, name: &str) -> Option<String> {
    fs::read_to_string(home.app(name).join(app_file::VERSION)).ok()
}

fn table(apps: &[App], installed: impl Fn(&App) -> Option<String>) -> Vec<String> {
    let row =
        |name: &str, version: &str, there: &str, title: &str| format!("{name:<14}{version:<10}{there:<11}{title}");
    let mut lines = vec![row("APP", "VERSION", "INSTALLED", "WHAT")];
    lines.extend(apps.iter().map(|app| {
        let there = installed(app).unwrap_or_else(|| "-".to_owned());
        row(&app.name, &app.version, &there, &app.title)
    }));
    lines
}

/// kubectl, for this cluster whatever KUBECONFIG says.
struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    fn new(home: &Home, install: &Install) -> Result<Self> {
        let beside = install.kubectl();
        let program =
            if beside.exists() { beside } else { which::which("kubectl").context("kubectl: put it on PATH")? };
        Ok(Self { program, kubeconfig: home.kubeconfig() })
    }

    fn command<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        command
    }

    /// Its standard output.
    fn output(&self, words: &[&str]) -> Result<Vec<u8>> {
        let done = self.command(words).output().with_context(|| self.program.display().to_string())?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "kubectl {}: {}", words.join(" "), said.trim());
        Ok(done.stdout)
    }

    /// Its words are for the user if it fails.
    fn run(&self, words: &[String]) -> Result<()> {
        self.output(&words.iter().map(String::as_str).collect::<Vec<_>>()).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_what_is_installed() {
        let apps = catalog::list().unwrap();
        let lines = table(&apps, |app| (app.name == "argo").then(|| "v4.0.5".to_owned()));
        assert_eq!(lines.len(), apps.len() + 1);
        let argo = lines.iter().find(|l| l.starts_with("argo ")).unwrap();
        assert_eq!(argo.split_whitespace().take(3).collect::<Vec<_>>(), ["argo", "v4.0.5", "v4.0.5"]);
        let lines = table(&apps, |_| None);
        let argo = lines.iter().find(|l| l.starts_with("argo ")).unwrap();
        assert_eq!(argo.split_whitespace().nth(2), Some("-"));
    }

    #[test]
    fn objects_come_before_the_wait_for_them() {
        let app = catalog::find(catalog::list().unwrap(), "argo").unwrap();
        let steps = steps(&app, "/o.yaml");
        assert_eq!(steps[0][..2], ["apply", "--server-side"]);
        assert!(steps[1].starts_with(&["wait".to_owned(), "-n".to_owned(), "argo".to_owned()]));
    }
}
