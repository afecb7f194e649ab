//! `hpk-image pull REFERENCE STORE`: the image store without a cluster, for tests and for looking at images.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints for who calls it, and ends then")]

use hpk_images::{ImageStore, Keyring, Layout, Limits, LocalImages, PullPolicy, Registries, StoreConfig, helper};
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "image-helper"] => helper::main(),
        [_, "pull", reference, store] => pull(reference, store),
        _ => {
            eprintln!("usage: hpk-image pull REFERENCE STORE-FOLDER");
            ExitCode::from(2)
        }
    }
}

fn pull(reference: &str, store: &str) -> ExitCode {
    let run = async {
        let program = std::env::current_exe()?;
        let store = ImageStore::new(StoreConfig {
            root: store.into(),
            helper: helper::command_of(program.as_os_str()),
            registries: Registries::default(),
            limits: Limits::default(),
            layout: Layout::default(),
        })?;
        let image =
            store.pull(reference, PullPolicy::Always, &Keyring::default(), &LocalImages::Anywhere, &|_| ()).await?;
        println!("{}", image.image_ref.id);
        println!("{}", store.rootfs(&image.image_ref).display());
        println!("{:?}", image.config);
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|r| r.block_on(run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("hpk-image: {e}");
            ExitCode::FAILURE
        }
    }
}
