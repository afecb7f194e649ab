//! `hpk image`: what is in the image store, and what goes in and out of it. It works with the store itself, by locks: with a
//! cluster that runs or without one.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

mod credentials;
mod pick;
mod show;

use crate::cli::{Format, Image, ImageCommand, ImageList, ImageLoad, ImagePrune, ImagePull, ImageRm, ImageVerify};
use crate::home;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow};
use hpk_api::cluster::ClusterConfig;
use hpk_api::images::{ImageRules, LayoutChoice};
use hpk_images::{ImageStore, Layout, Limits, LocalImages, PullPolicy, Registries, RemoveError, StoreConfig, Verified};
use hpk_images::{Uses, UsesError, helper};
use hpk_layout::Home;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

/// `hpk image`.
pub(crate) async fn run(args: Image) -> Result<ExitCode> {
    let asked = match &args.command {
        ImageCommand::Pull(args) => args.layout,
        ImageCommand::Load(args) => args.layout,
        _ => None,
    };
    let place = Place::open(asked.map(Into::into))?;
    match args.command {
        ImageCommand::List(args) => place.list(&args),
        ImageCommand::Pull(args) => place.pull(&args).await,
        ImageCommand::Load(args) => place.load(&args).await,
        ImageCommand::Rm(args) => place.rm(&args).await,
        ImageCommand::Prune(args) => place.prune(&args).await,
        ImageCommand::Verify(args) => place.verify(&args).await,
    }
}

/// The store of HPK_HOME, and the pods that use it.
struct Place {
    home: Home,
    store: ImageStore,
}

impl Place {
    fn open(asked: Option<LayoutChoice>) -> Result<Self> {
        let home = home::find()?;
        home::create(&home)?;
        let cluster = std::fs::read(home.cluster_json()).ok();
        let cluster = cluster.and_then(|text| serde_json::from_slice::<ClusterConfig>(&text).ok());
        let rules = cluster.map_or_else(ImageRules::default, |cluster| cluster.images);
        let root = home.images();
        let layout = Layout::of(asked.unwrap_or(rules.layout), &root);
        let kubelet = home::install()?.kubelet();
        if !kubelet.exists() {
            return Err(anyhow!("{} is missing: make install, or set HPK_PREFIX", kubelet.display()));
        }
        let store = ImageStore::new(StoreConfig {
            root,
            helper: helper::command_of(kubelet.as_os_str()),
            registries: Registries::load(&home.registries())?,
            limits: Limits::from(&rules),
            layout,
        })?;
        Ok(Self { home, store })
    }

    /// By the folders of all pods: of those that run, wait and are being made, on whichever node.
    fn uses(&self) -> Result<Uses, UsesError> {
        hpk_images::uses(&self.home.pods())
    }

    fn list(&self, args: &ImageList) -> Result<ExitCode> {
        let images = self.store.list()?;
        // What cannot be told is shown as that, where nothing depends on it.
        let uses = self.uses().context("it cannot be told which images pods have")?;
        let rows = show::rows(images, &uses);
        match args.output.output {
            Format::Json => println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "images": rows }))?),
            Format::Text if rows.is_empty() => {
                println!("no images; hpk image pull NAME or hpk image load FILE brings one")
            }
            Format::Text => print!("{}", show::table(&rows)),
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn pull(&self, args: &ImagePull) -> Result<ExitCode> {
        let keyring = credentials::keyring()?;
        for name in &args.names {
            let teller = Teller::new(name);
            let tell = |news| teller.tell(news);
            let image = self.store.pull(name, PullPolicy::Always, &keyring, &LocalImages::Anywhere, &tell).await;
            let image = image.map_err(|error| anyhow!("{error}{}", pull_hint(&error)))?;
            drop(teller);
            println!("{}", image.image_ref.id);
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn load(&self, args: &ImageLoad) -> Result<ExitCode> {
        let teller = Teller::new(&args.file);
        let tell = |news| teller.tell(news);
        let loaded = self.store.load(&args.file, args.name.as_deref(), &tell).await?;
        drop(teller);
        for name in &loaded.names {
            println!("{name}");
        }
        if loaded.names.is_empty() {
            println!("{}", loaded.image.image_ref.id);
            hpk_api::say!("hpk: the file gives the image no name: give one by --name, such as --name app:1");
        } else if loaded.names.iter().any(|name| name.ends_with(":latest")) {
            hpk_api::say!("hpk: pods ask a registry for :latest unless they have imagePullPolicy: IfNotPresent");
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn rm(&self, args: &ImageRm) -> Result<ExitCode> {
        let mut failed = false;
        for name in &args.names {
            let images = self.store.list()?;
            let picked = match pick::pick(&images, name) {
                Ok(picked) => picked,
                Err(why) => {
                    hpk_api::say!("hpk: {why}");
                    failed = true;
                    continue;
                }
            };
            if let (Some(reference), true) = (&picked.reference, picked.image.names.len() > 1) {
                self.store.forget(reference)?;
                println!("removed the name {reference}; the image has others");
                continue;
            }
            match self.store.remove(&picked.image.image_ref, &|| self.uses()).await {
                Ok(()) => println!("removed {}", picked.image.image_ref.id),
                Err(error) => {
                    failed = true;
                    hpk_api::say!("hpk: {name}: {error}{}", rm_hint(&error));
                }
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    async fn prune(&self, args: &ImagePrune) -> Result<ExitCode> {
        let uses = self.uses().context("nothing is removed, for it cannot be told which images pods have")?;
        let before = self.store.list()?;
        if args.dry_run {
            for row in show::rows(before, &uses).iter().filter(|row| row.is_free(args.older_than)) {
                println!("would remove {}", row.id);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let progress = Progress::new();
        progress.waiting(format!("removing images that no pod has ({} are there)", before.len()));
        let collected = self.store.collect(&|| self.uses(), args.older_than).await?;
        drop(progress);
        let gone = |folder: &str| before.iter().find(|image| image.image_ref.folder == folder);
        let (mut bytes, mut inodes) = (collected.blob_bytes, u64::try_from(collected.blobs)?);
        for image in collected.images.iter().filter_map(|folder| gone(folder)) {
            println!("removed {}", image.image_ref.id);
            let takes = image.takes.unwrap_or_default();
            bytes += takes.0;
            inodes += takes.1;
        }
        println!(
            "{} images and {} cached layers removed: {} and {inodes} inodes are free",
            collected.images.len(),
            collected.blobs,
            show::size(bytes)
        );
        Ok(ExitCode::SUCCESS)
    }

    async fn verify(&self, args: &ImageVerify) -> Result<ExitCode> {
        let images = self.store.list()?;
        let mut failed = false;
        let mut picked = Vec::new();
        for name in &args.names {
            match pick::pick(&images, name) {
                Ok(found) => picked.push(found.image),
                Err(why) => return Err(anyhow!(why)),
            }
        }
        let all = if args.names.is_empty() { images.iter().collect() } else { picked };
        for image in all {
            let progress = Progress::new();
            progress.waiting(format!("checking {}", image.image_ref.id));
            let verified = self.store.verify(&image.image_ref).await?;
            drop(progress);
            let word = match verified {
                Verified::Good => "ok".to_owned(),
                Verified::Unknown => {
                    "unknown: pulled by an earlier version, which wrote nothing down to compare".to_owned()
                }
                Verified::Damaged(why) => {
                    failed = true;
                    format!("DAMAGED: {why}: remove and pull it again")
                }
            };
            println!("{}   {word}", image.image_ref.id);
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// What to do next.
fn pull_hint(error: &hpk_images::PullError) -> &'static str {
    use hpk_images::PullError as E;
    match error {
        E::RegistryUnavailable { .. } => {
            "; on a site without a way to the registry: hpk image load FILE, with a file of skopeo copy or docker save"
        }
        E::Unauthorized { .. } => "; log in by podman login, docker login or apptainer registry login",
        _ => "",
    }
}

fn rm_hint(error: &RemoveError) -> &'static str {
    match error {
        RemoveError::InUse(_) => ": delete these pods first",
        RemoveError::Unknown(_) => ": see hpk status",
        RemoveError::Store(_) => "",
    }
}

/// Tells of one pull: on a terminal always, elsewhere when it takes longer than [`SILENT`].
struct Teller {
    name: String,
    progress: Progress,
    /// Bytes that have come, and that are to come.
    bytes: Mutex<(u64, u64)>,
}

/// Who waits no longer than this needs no word.
const SILENT: Duration = Duration::from_secs(2);

impl Teller {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), progress: Progress::new(), bytes: Mutex::default() }
    }

    fn tell(&self, news: hpk_images::Progress) {
        use hpk_images::Progress as P;
        let mut bytes = self.bytes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = match news {
            P::Resolved { total } => {
                bytes.1 += total;
                format!("{}: {} to fetch", self.name, show::size(total))
            }
            P::Downloaded { bytes: more } => {
                bytes.0 += more;
                let text = format!("{}: {} of {}", self.name, show::size(bytes.0), show::size(bytes.1));
                return self.progress.waiting(text);
            }
            P::Unpacking => format!("{}: unpacking", self.name),
            P::Packing => format!("{}: packing into one file", self.name),
        };
        self.progress.phase(text, SILENT);
    }
}
