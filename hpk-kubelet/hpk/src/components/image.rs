//! A program of the control plane as a command: from a folder, or from the Apptainer image.

use super::Layout;
use crate::decide::Programs;
use crate::supervise::strays;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The flag that names the one folder in which a program writes.
const DATA: &str = "--data-dir";

/// Program and arguments that start control plane program `name` with `args`. Of HPK_HOME it gets what its arguments name,
/// and `files`, which its configuration names; each to read, but for etcd's data.
pub(super) fn command(layout: &Layout, name: &str, args: Vec<String>, files: &[String]) -> (PathBuf, Vec<String>) {
    match &layout.control_plane.programs {
        Programs::Folder { path } => (path.join(name), args),
        Programs::Image { apptainer, image } => {
            let marks = [strays::mark(layout.home.root()), strays::component_mark(name)];
            let mut wrapped = contained(&marks, binds(layout.home.root(), &args, files));
            wrapped.extend([image.display().to_string(), format!("/bin/{name}")]);
            wrapped.extend(args);
            (apptainer.clone(), wrapped)
        }
    }
}

/// A program of the control plane's that runs to its end, with these paths and how each is bound; arguments are to be added.
pub(crate) fn tool(programs: &Programs, name: &str, binds: &[(&Path, &'static str)]) -> Command {
    let mut command = match programs {
        Programs::Folder { path } => Command::new(path.join(name)),
        Programs::Image { apptainer, image } => {
            let mut command = Command::new(apptainer);
            let binds = binds.iter().map(|(path, mode)| (path.display().to_string(), *mode));
            command.args(contained(&[], binds)).arg(image).arg(format!("/bin/{name}"));
            command
        }
    };
    command.stdin(Stdio::null());
    command
}

/// Arguments of Apptainer's before the image's path.
fn contained(marks: &[String], binds: impl IntoIterator<Item = (String, &'static str)>) -> Vec<String> {
    // No PID namespace: the program is then a plain child, TERM is forwarded to it, and it sees nothing of the
    // user's home but what it is given, at the same path as outside.
    let mut arguments: Vec<String> = ["--silent", "exec", "--contain", "--cleanenv", "--no-home", "--pwd", "/"]
        .iter()
        .map(ToString::to_string)
        .collect();
    if nix::unistd::geteuid().is_root() {
        // These programs need no rights of root's, and Apptainer would ask for some that root may lack.
        arguments.push("--no-privs".to_owned());
    }
    for mark in marks {
        arguments.extend(["--env".into(), mark.clone()]);
    }
    for (path, mode) in binds {
        arguments.extend(["--bind".into(), format!("{path}:{path}:{mode}")]);
    }
    arguments
}

/// What of `home` is bound, each path once, and how.
fn binds(home: &Path, args: &[String], files: &[String]) -> BTreeMap<String, &'static str> {
    let named = args.iter().flat_map(|arg| {
        let (flag, value) = arg.split_once('=').unwrap_or(("", arg));
        // A flag may take a list.
        value.split(',').map(move |path| (flag, path))
    });
    named
        .chain(files.iter().map(|path| ("", path.as_str())))
        // etcd's data may be elsewhere.
        .filter(|(flag, path)| *flag == DATA || (Path::new(path).starts_with(home) && Path::new(path) != home))
        .map(|(flag, path)| (path.to_owned(), if flag == DATA { "rw" } else { "ro" }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_what_it_is_told_of_and_nothing_else() {
        let args = ["--data-dir=/h/.hpk/etcd", "--key=/h/.hpk/pki/a.key", "--x=/etc/passwd", "--home=/h/.hpk", "-conf"];
        let args: Vec<String> =
            args.iter().map(ToString::to_string).chain(["/h/.hpk/config/Corefile".into()]).collect();
        let found =
            binds(Path::new("/h/.hpk"), &args, &["/h/.hpk/pki/b.kubeconfig".into(), "/h/.hpk/pki/a.key".into()]);
        let found: Vec<_> = found.iter().map(|(path, mode)| (path.as_str(), *mode)).collect();
        assert_eq!(
            found,
            [
                ("/h/.hpk/config/Corefile", "ro"),
                ("/h/.hpk/etcd", "rw"),
                ("/h/.hpk/pki/a.key", "ro"),
                ("/h/.hpk/pki/b.kubeconfig", "ro"),
            ]
        );
    }
}
