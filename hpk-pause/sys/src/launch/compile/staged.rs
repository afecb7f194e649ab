//! The same container on kernels without detached mounts (before 5.2, or 5.12 where they are to have attributes).
//!
//! There a mount can neither be held without a place nor be made of something that the old root's end has taken away. So
//! ```text
//! sources are held (O_PATH) ─ bound on a stage ─ chroot to the new root ─ moved from the stage to their places ─ chroot back, pivot
//! ```
//! Every mount point is resolved in the new root, as after a pivot: neither a link nor `..` leads out of it, and the stage has
//! no path there. The pivot comes with the last mount, so that what follows (rights, the command) is as ever.

use super::root::STAGE;
use super::text::c;
use crate::error::LaunchError;
use crate::program::{Op, OpKind, Program, Slot, Step};

/// Rewrites a native launcher's program.
pub(super) fn rewrite(program: &mut Program) -> Result<(), LaunchError> {
    let old = program.slot();
    let mut root = None;
    let mut done: Vec<Op> = Vec::with_capacity(program.ops.len() * 2);
    // What can be done only once there is a stage.
    let mut later: Vec<Op> = Vec::new();
    for Op { kind, step, label, optional } in program.ops.drain(..) {
        let op = |kind| Op { kind, step, label: label.clone(), optional };
        let tree = |slot: Slot, recursive| op(OpKind::StageTree { slot, recursive });
        match kind {
            // The ties are cut with the pivot: those of the sources are kept until then.
            OpKind::Mount { flags, .. } if step == Step::Propagation && flags & libc::MS_PRIVATE != 0 => {}
            OpKind::Mount { target, .. } if root.is_none() && target.as_bytes() == STAGE.as_bytes() => {
                done.push(op(OpKind::Stage { path: target.clone() }));
                done.append(&mut later);
                // The skeleton, a layer of the root, is on it: overlay takes nothing that cannot be bound.
                let flags = libc::MS_PRIVATE;
                done.push(op(OpKind::Mount { source: None, target, fstype: None, flags, data: None }));
            }
            OpKind::OpenTree { slot, path, recursive } => {
                later.push(tree(slot, recursive));
                done.push(op(OpKind::HoldTree { slot, path }));
            }
            OpKind::OpenSubTree { slot, volume, prefixes, last_components, .. } => {
                later.push(tree(slot, true));
                done.push(op(OpKind::OpenSubTree { slot, volume, prefixes, last_components, copy: false }));
            }
            OpKind::NewFs { slot, fstype, attributes } => {
                // The attributes that are used have the numbers of mount(2)'s flags.
                later.push(op(OpKind::StageFs { slot, fstype, flags: attributes }));
            }
            OpKind::SetAttr { slot, recursive, propagation, .. } => {
                let flags = propagation | if recursive { libc::MS_REC } else { 0 };
                later.push(op(OpKind::StagePropagation { slot, flags }));
            }
            OpKind::Pivot { path } => {
                root = Some(path.clone());
                done.push(op(OpKind::Enter { path, old }));
            }
            OpKind::Attach { slot, target, missing, fallback_read_only: read_only } => {
                done.push(op(OpKind::AttachStaged { slot, target, missing, read_only }));
            }
            other => done.push(op(other)),
        }
    }
    let mounts =
        |op: &Op| matches!(op.kind, OpKind::AttachStaged { .. } | OpKind::Mask { .. } | OpKind::ReadOnlyPath { .. });
    let last = done.iter().rposition(mounts).map_or(done.len(), |last| last + 1);
    let path = root.map_or_else(|| c("rootfs", "/"), Ok)?;
    let kind = OpKind::Leave { path, old };
    done.insert(last, Op { kind, step: Step::Pivot, label: "/".to_owned(), optional: false });
    program.ops = done;
    Ok(())
}
