//! A program of the control plane as a command: from a folder, or from the Apptainer image.

use super::Layout;
use crate::decide::Programs;
use crate::supervise::strays;
use std::path::PathBuf;

/// Program and arguments that start control plane program `name` with `args`.
pub(super) fn command(layout: &Layout, name: &str, args: Vec<String>) -> (PathBuf, Vec<String>) {
    match &layout.control_plane.programs {
        Programs::Folder { path } => (path.join(name), args),
        Programs::Image { apptainer, image } => {
            let home = layout.home.root().display();
            // No PID namespace: the program is then a plain child, TERM is forwarded to it, and it sees
            // nothing of the user's home but HPK_HOME, at the same path as outside.
            let mut wrapped: Vec<String> = ["--silent", "exec", "--contain", "--cleanenv", "--no-home", "--pwd", "/"]
                .iter()
                .map(ToString::to_string)
                .collect();
            if nix::unistd::geteuid().is_root() {
                // These programs need no rights of root's, and Apptainer would ask for some that root may lack.
                wrapped.push("--no-privs".to_owned());
            }
            wrapped.extend(["--env".into(), strays::mark(layout.home.root())]);
            wrapped.extend(["--bind".into(), format!("{home}:{home}")]);
            wrapped.extend([image.display().to_string(), format!("/bin/{name}")]);
            wrapped.extend(args);
            (apptainer.clone(), wrapped)
        }
    }
}
