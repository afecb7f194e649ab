//! `hpk-netns inside …`: becomes a program in a pod's user namespace and in one of its network namespaces, with the files
//! of the node. Plug-ins and nft are started by it.
//!
//! It is a process of its own since a process with threads cannot enter a user namespace. Uid 0 there is our own user;
//! the program has every capability over the pod's network and none over the node's.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the sub-command.
pub const COMMAND: &str = "inside";

/// What to enter, with descriptors of the process that starts this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// User namespace.
    pub user: RawFd,
    /// Network namespace.
    pub network: RawFd,
    /// For plug-ins.
    pub places: Option<Places>,
}

/// What a plug-in finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The pod's network namespace.
    pub pod: RawFd,
    /// Folder of the pod on this node: /run, where plug-ins keep state and locks.
    pub run: PathBuf,
    /// Below /run: CNI_NETNS.
    pub netns: PathBuf,
}

impl Inside {
    /// The arguments for it, in front of the program's own.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut all: Vec<OsString> =
            vec![COMMAND.into(), self.user.to_string().into(), self.network.to_string().into()];
        match &self.places {
            Some(Places { pod, run, netns }) => {
                all.extend([pod.to_string().into(), run.clone().into_os_string(), netns.clone().into_os_string()]);
            }
            None => all.push("-".into()),
        }
        all
    }

    /// The other way round: what is left over is the program with its arguments.
    fn parse(arguments: &[OsString]) -> Option<(Self, &[OsString])> {
        let number = |text: &OsStr| text.to_str()?.parse().ok();
        let [user, network, pod, rest @ ..] = arguments else { return None };
        let (user, network) = (number(user)?, number(network)?);
        if pod == "-" {
            return Some((Self { user, network, places: None }, rest));
        }
        let [run, netns, rest @ ..] = rest else { return None };
        let places = Places { pod: number(pod)?, run: run.into(), netns: netns.into() };
        Some((Self { user, network, places: Some(places) }, rest))
    }
}

/// Becomes the program; comes back only with an error. `parent`: whose descriptors are meant.
///
/// # Errors
/// What could not be entered.
pub fn run(arguments: &[OsString], parent: u32) -> io::Result<Infallible> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "inside is for hpk-netns itself");
    let (inside, command) = Inside::parse(arguments).ok_or_else(usage)?;
    let [program, rest @ ..] = command else { return Err(usage()) };
    let open = |fd: RawFd| File::open(format!("/proc/{parent}/fd/{fd}")).map(OwnedFd::from);
    let (user, network) = (open(inside.user)?, open(inside.network)?);
    let pod = inside.places.as_ref().map(|places| open(places.pod)).transpose()?;
    // A pod of root's has none of its own.
    if !is_ours(&user)? {
        setns(&user, CloneFlags::CLONE_NEWUSER)?;
    }
    setns(&network, CloneFlags::CLONE_NEWNET)?;
    if let (Some(places), Some(pod)) = (&inside.places, &pod) {
        furnish(places, pod)?;
    }
    // After the last change of credentials, which would undo it. What it starts ends with hpk-netns.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    Err(Command::new(program).args(rest).exec())
}

fn is_ours(user: &OwnedFd) -> io::Result<bool> {
    let theirs = File::from(user.try_clone()?).metadata()?;
    let own = std::fs::metadata("/proc/self/ns/user")?;
    Ok((theirs.dev(), theirs.ino()) == (own.dev(), own.ino()))
}

/// A /run of the pod's own, and in it the pod's network namespace by name, as plug-ins know it from other runtimes.
fn furnish(places: &Places, pod: &OwnedFd) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some(&places.run), "/run", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    if let Some(folder) = places.netns.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::options().create(true).append(true).open(&places.netns)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", pod.as_raw_fd()));
    mount(Some(source.as_path()), places.netns.as_path(), none, MsFlags::MS_BIND, none)?;
    Ok(())
}

/// Where the pod's network namespace is for plug-ins.
#[must_use]
pub fn netns_path(uid: &str) -> PathBuf {
    Path::new("/run/netns").join(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_go_there_and_back() {
        let places = Places { pod: 9, run: "/t/run".into(), netns: netns_path("u-1") };
        for inside in
            [Inside { user: 7, network: 8, places: None }, Inside { user: 7, network: 8, places: Some(places) }]
        {
            let mut line = inside.arguments();
            line.extend(["nft".into(), "-f".into()]);
            let (parsed, rest) = Inside::parse(&line[1..]).unwrap();
            assert_eq!(parsed, inside);
            assert_eq!(rest, ["nft", "-f"]);
        }
        assert_eq!(Inside::parse(&["x".into()]), None);
    }
}
