//! What `hpk image list` shows. Pure.

use hpk_images::{StoredImage, Uses};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::Duration;

/// An image, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    /// Digest reference.
    pub(super) id: String,
    /// By which pods have it, without asking a registry.
    names: Vec<String>,
    layout: &'static str,
    /// Of its compressed layers.
    registry_bytes: u64,
    /// On the file system of HPK_HOME; null: not known of an image that an earlier version pulled.
    bytes: Option<u64>,
    inodes: Option<u64>,
    last_used: Option<Timestamp>,
    /// namespace/name of pods.
    used_by: BTreeSet<String>,
}

impl Row {
    /// Whether prune takes it.
    pub(super) fn is_free(&self, older_than: Duration) -> bool {
        let age = self.last_used.map(|at| Timestamp::now().duration_since(at).unsigned_abs()).unwrap_or(Duration::MAX);
        self.used_by.is_empty() && age >= older_than
    }
}

/// The store's images, those used last first.
pub(super) fn rows(mut images: Vec<StoredImage>, uses: &Uses) -> Vec<Row> {
    images.sort_by(|a, b| (b.last_used, &a.image_ref.id).cmp(&(a.last_used, &b.image_ref.id)));
    let row = |image: StoredImage| Row {
        used_by: uses.get(&image.image_ref.folder).cloned().unwrap_or_default(),
        id: image.image_ref.id,
        names: image.names,
        layout: image.layout.name(),
        registry_bytes: image.size,
        bytes: image.takes.map(|(bytes, _)| bytes),
        inodes: image.takes.map(|(_, inodes)| inodes),
        last_used: Timestamp::try_from(image.last_used).ok(),
    };
    images.into_iter().map(row).collect()
}

/// A line for each image.
pub(super) fn table(rows: &[Row]) -> String {
    let dash = || "-".to_owned();
    let mut lines = vec![["IMAGE", "DIGEST", "LAYOUT", "SIZE", "INODES", "IN USE BY"].map(str::to_owned)];
    for row in rows {
        let digest = row.id.rsplit_once("sha256:").map_or("-", |(_, digits)| digits.get(..12).unwrap_or(digits));
        let mut used: Vec<&str> = row.used_by.iter().map(String::as_str).take(3).collect();
        let more = format!("and {} more", row.used_by.len().saturating_sub(3));
        if row.used_by.len() > 3 {
            used.push(&more);
        }
        let first = [
            row.names
                .first()
                .cloned()
                .unwrap_or_else(|| row.id.rsplit_once('@').map_or(dash(), |(name, _)| name.to_owned())),
            digest.to_owned(),
            row.layout.to_owned(),
            row.bytes.map_or_else(dash, size),
            row.inodes.map_or_else(dash, |inodes| inodes.to_string()),
            if used.is_empty() { dash() } else { used.join(", ") },
        ];
        lines.push(first);
        let further = row.names.iter().skip(1);
        lines.extend(
            further.map(|name| {
                [name.clone(), digest.to_owned(), String::new(), String::new(), String::new(), String::new()]
            }),
        );
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// Bytes for people, by thousands as registries tell them.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.5 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::ImageRef;
    use hpk_images::Layout;
    use std::time::SystemTime;

    #[test]
    fn one_line_an_image_and_one_for_each_further_name() {
        let image = |digits: &str, names: &[&str], takes, seconds| StoredImage {
            image_ref: ImageRef { folder: format!("sha256-{digits}"), id: format!("r/x@sha256:{digits}") },
            names: names.iter().map(ToString::to_string).collect(),
            size: 5,
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            layout: Layout::Squashfs,
            takes,
        };
        let images =
            vec![image("aaaaaaaaaaaaaaaa", &[], None, 1), image("bb", &["r/x:1", "r/x:2"], Some((12_345_678, 1)), 2)];
        let uses = Uses::from([("sha256-bb".to_owned(), ["d/a", "d/b", "d/c", "d/d"].map(str::to_owned).into())]);
        let rows = rows(images, &uses);
        assert_eq!(
            table(&rows),
            "\
IMAGE   DIGEST         LAYOUT     SIZE      INODES   IN USE BY
r/x:1   bb             squashfs   12.3 MB   1        d/a, d/b, d/c, and 1 more
r/x:2   bb
r/x     aaaaaaaaaaaa   squashfs   -         -        -
"
        );
        assert_eq!(rows.iter().map(|row| row.is_free(Duration::ZERO)).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (999_600_000, "1.0 GB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
