//! The CNI runtime of a pod's overlay: runs the further plug-ins of the user's list inside the pod's own user namespace,
//! on the pod's node side (a network namespace with the TUN and one end of a veth whose other end is the pod's).
//!
//! ```text
//!   ADD     1 … n in order, each with the result of the one before; one that fails: DEL n … 1, the pod does not start
//!   CHECK   once after ADD (what fails is a warning), and on demand
//!   DEL     n … 1, when the pod is over, whether its supervisor ended or was killed
//! ```
//! One task owns it all. When hpk-netns itself is killed there is nothing to undo: devices, rules and addresses are the
//! namespaces', which end with it; /run, where plug-ins keep files, is in the job's folder.

mod call;
mod exec;
pub mod inside;
mod list;

use call::{Runtime, Verb};
use hpk_api::cni::CniResult;
use hpk_api::net::{ChainOffer, NetworkPlan};
use hpk_api::plan::PodRef;
use hpk_layout::{Home, node};
use inside::{Inside, Places, netns_path};
use list::{List, Plugin};
use serde_json::Value;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub(crate) use exec::{run as run_inside, search_path};
pub(crate) use list::ListError;

/// How long one plug-in may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Where plug-ins are, after the user's own folder.
const FOLDERS: [&str; 4] = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni", "/usr/local/lib/cni"];

/// Why the plug-ins have not made the network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error(transparent)]
    List(#[from] ListError),
    #[error(
        "{file}: plugins[{index}].type: there is no plug-in {kind:?} in {folders}: install it there, or ask for the package containernetworking-plugins on the compute nodes"
    )]
    NotInstalled { file: String, index: usize, kind: String, folders: String },
    #[error("CNI plug-in {kind} ({verb}): {message}")]
    Plugin { kind: String, verb: &'static str, message: String },
    #[error("{0}")]
    Setup(String),
}

/// Namespaces of a pod, open.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub(crate) user: OwnedFd,
    pub(crate) pod: OwnedFd,
    pub(crate) node_side: OwnedFd,
}

/// What the task is asked for.
#[derive(Debug)]
pub(crate) enum Ask {
    Add(Box<Add>),
    Check(oneshot::Sender<Result<(), ChainError>>),
}

/// See [`Ask::Add`].
#[derive(Debug)]
pub(crate) struct Add {
    pub(crate) offer: ChainOffer,
    pub(crate) namespaces: Namespaces,
    /// The pod's network namespace as a path on the node, for the result.
    pub(crate) sandbox: String,
    pub(crate) answer: oneshot::Sender<Result<Added, ChainError>>,
}

/// What came of ADD.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    pub(crate) result: CniResult,
    /// CHECK right afterwards failed so.
    pub(crate) unsound: Option<String>,
}

/// A list and what it is run with; nothing is done yet.
#[derive(Debug)]
pub(crate) struct Chain {
    list: Result<List, ListError>,
    file: String,
    runtime: Runtime,
    /// Ours, for /run.
    run: PathBuf,
    folders: Vec<PathBuf>,
}

impl Chain {
    /// `local`: the pod's folder on this node. None: the plan has no list.
    pub(crate) fn of(pod: &PodRef, plan: &NetworkPlan, home: &Home, local: &Path) -> Option<Self> {
        let list = plan.list.as_ref()?;
        let runtime = Runtime {
            container_id: pod.uid.clone(),
            args: call::args(&pod.namespace, &pod.name, &pod.uid),
            host_ports: plan.host_ports.clone(),
            bandwidth: plan.bandwidth,
        };
        let folders = std::iter::once(home.network_plugins()).chain(FOLDERS.map(PathBuf::from)).collect();
        Some(Self { list: List::parse(list), file: list.file.clone(), runtime, run: local.join(node::CNI), folders })
    }

    /// Whether the list is good.
    pub(crate) fn judge(&self) -> Result<(), ListError> {
        self.list.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Whether a plug-in carries out the pod's host ports.
    pub(crate) fn maps_ports(&self) -> bool {
        self.list.as_ref().is_ok_and(List::maps_ports)
    }

    /// Serves the supervisor until `leave`, then gives back what was made.
    pub(crate) async fn serve(self, mut asks: mpsc::Receiver<Ask>, leave: CancellationToken) {
        let mut attached: Option<Attached> = None;
        loop {
            let ask = tokio::select! {
                Some(ask) = asks.recv() => ask,
                () = leave.cancelled() => break,
            };
            match ask {
                Ask::Add(add) => {
                    let Add { offer, namespaces, sandbox, answer } = *add;
                    let added = match self.add(offer, namespaces, &sandbox).await {
                        Ok((made, result)) => {
                            let unsound = made.check().await.err().map(|e| e.to_string());
                            attached = Some(made);
                            Ok(Added { result, unsound })
                        }
                        Err(error) => Err(error),
                    };
                    let _ = answer.send(added);
                }
                Ask::Check(answer) => {
                    let checked = match &attached {
                        Some(attached) => attached.check().await,
                        None => Err(ChainError::Setup("the pod's network is not made yet".to_owned())),
                    };
                    let _ = answer.send(checked);
                }
            }
        }
        if let Some(attached) = attached {
            attached.delete(attached.programs.len()).await;
        }
    }

    async fn add(
        &self,
        offer: ChainOffer,
        namespaces: Namespaces,
        sandbox: &str,
    ) -> Result<(Attached, CniResult), ChainError> {
        let list = self.list.clone()?;
        let programs = self.find(&list)?;
        std::fs::create_dir_all(&self.run)
            .map_err(|error| ChainError::Setup(format!("{}: {error}", self.run.display())))?;
        let netns = netns_path(&self.runtime.container_id);
        let inside_path = netns.display().to_string();
        let mut attached = Attached {
            result: call::previous(&list, &offer.result, &inside_path),
            list,
            programs,
            runtime: self.runtime.clone(),
            interface: offer.interface.clone(),
            path: std::env::join_paths(&self.folders).unwrap_or_default(),
            inside: Inside {
                user: namespaces.user.as_raw_fd(),
                network: namespaces.node_side.as_raw_fd(),
                places: Some(Places { pod: namespaces.pod.as_raw_fd(), run: self.run.clone(), netns }),
            },
            _namespaces: namespaces,
        };
        for index in 0..attached.programs.len() {
            let done = attached.call(index, Verb::Add).await.and_then(|output| {
                let value = serde_json::from_slice::<Value>(&output);
                value
                    .and_then(|v| call::result(&v, &offer.result, &inside_path, sandbox).map(|_| v))
                    .map_err(|error| attached.error(index, Verb::Add, format!("has returned no CNI result: {error}")))
            });
            match done {
                Ok(value) => attached.result = value,
                Err(error) => {
                    // The one that failed may have done a part.
                    attached.delete(index + 1).await;
                    return Err(error);
                }
            }
        }
        let result = call::result(&attached.result, &offer.result, &inside_path, sandbox)
            .map_err(|error| ChainError::Setup(format!("the CNI result: {error}")))?;
        Ok((attached, result))
    }

    /// Every plug-in's program, before any of them is run.
    fn find(&self, list: &List) -> Result<Vec<PathBuf>, ChainError> {
        let program = |(index, plugin): (usize, &Plugin)| {
            let found = self.folders.iter().map(|folder| folder.join(&plugin.kind)).find(|path| path.is_file());
            found.ok_or_else(|| ChainError::NotInstalled {
                file: self.file.clone(),
                index: index + 1,
                kind: plugin.kind.clone(),
                folders: self.folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
            })
        };
        list.plugins.iter().enumerate().map(program).collect()
    }
}

/// A network that was made, or is being made.
#[derive(Debug)]
struct Attached {
    list: List,
    programs: Vec<PathBuf>,
    runtime: Runtime,
    interface: String,
    path: OsString,
    /// Of the plug-in that came last.
    result: Value,
    inside: Inside,
    /// Open as long as this lives.
    _namespaces: Namespaces,
}

impl Attached {
    /// CHECK of each plug-in in order.
    async fn check(&self) -> Result<(), ChainError> {
        if self.list.disable_check {
            return Ok(());
        }
        for index in 0..self.programs.len() {
            self.call(index, Verb::Check).await?;
        }
        Ok(())
    }

    /// DEL of the first `count` plug-ins, the last of them first. One that fails does not keep the others from it.
    async fn delete(&self, count: usize) {
        for index in (0..count).rev() {
            if let Err(error) = self.call(index, Verb::Del).await {
                hpk_api::say!("hpk-netns: {error}");
            }
        }
    }

    /// Gives the plug-in's standard output.
    async fn call(&self, index: usize, verb: Verb) -> Result<Vec<u8>, ChainError> {
        let failed = |message: String| self.error(index, verb, message);
        let (Some(plugin), Some(program)) = (self.list.plugins.get(index), self.programs.get(index)) else {
            return Ok(Vec::new());
        };
        let conf = call::configuration(&self.list, plugin, &self.runtime, &self.result);
        let netns = self.inside.places.as_ref().map(|p| p.netns.clone()).unwrap_or_default();
        let env = [
            ("CNI_COMMAND", verb.word().into()),
            ("CNI_CONTAINERID", self.runtime.container_id.as_str().into()),
            ("CNI_NETNS", netns.into_os_string()),
            ("CNI_IFNAME", self.interface.as_str().into()),
            ("CNI_ARGS", self.runtime.args.as_str().into()),
            ("CNI_PATH", self.path.clone()),
            ("PATH", search_path()),
        ];
        let command = [program.clone().into_os_string()];
        let ended = run_inside(&self.inside, &command, &env, conf.to_string().as_bytes(), LIMIT).await;
        let ended = ended.map_err(|error| failed(error.to_string()))?;
        if ended.code == Some(0) {
            return Ok(ended.stdout);
        }
        Err(failed(call::complaint(&ended.stdout, &ended.stderr, ended.code)))
    }

    fn error(&self, index: usize, verb: Verb, message: String) -> ChainError {
        let kind = self.list.plugins.get(index).map(|p| p.kind.clone()).unwrap_or_default();
        ChainError::Plugin { kind, verb: verb.word(), message }
    }
}
