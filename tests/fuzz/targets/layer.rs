//! Layers of images: any tar is applied or refused, inside of the folder that it is for. One thread has that folder as its
//! root, as the real helper has, and never sees another.
#![no_main]

#[allow(dead_code)]
#[path = "../../../hpk-kubelet/images/src/layer.rs"]
mod layer;
#[allow(dead_code)]
#[path = "../../../hpk-kubelet/images/src/tree.rs"]
mod tree;

use libfuzzer_sys::fuzz_target;
use nix::sched::{CloneFlags, unshare};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex};

/// Only a folder with this file is emptied.
const MARK: &str = "/.fuzz-root";

struct Worker {
    layers: Sender<Vec<u8>>,
    done: Receiver<()>,
}

static WORKER: LazyLock<Mutex<Worker>> = LazyLock::new(|| {
    let (layers, theirs) = channel::<Vec<u8>>();
    let (tell, done) = channel();
    std::thread::spawn(move || {
        let folder = std::env::temp_dir().join(format!("hpk-fuzz-layer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(&MARK[1..]), "").expect("a mark");
        // Of this thread alone.
        unshare(CloneFlags::CLONE_FS).expect("a root of its own");
        nix::unistd::chroot(&folder).expect("root's right, or `unshare -r` before");
        std::env::set_current_dir("/").expect("the root");
        for bytes in theirs {
            empty();
            let limits = tree::Limits { bytes: 1 << 20, inodes: 200 };
            let _ = layer::apply(&bytes[..], &mut tree::Tree::new(false, limits));
            tell.send(()).expect("somebody waits");
        }
    });
    Mutex::new(Worker { layers, done })
});

fn empty() {
    assert!(Path::new(MARK).exists(), "this is not the root that was made for it");
    for entry in std::fs::read_dir("/").expect("the root").flatten() {
        if entry.path() != Path::new(MARK) {
            let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let _ = if folder { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let worker = WORKER.lock().expect("one at a time");
    worker.layers.send(bytes.to_vec()).expect("the worker");
    worker.done.recv().expect("the worker has not failed");
});
