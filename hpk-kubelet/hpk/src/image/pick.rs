//! Which image a word of the command line means. Pure.

use hpk_images::{Source, StoredImage};

/// What was meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Picked<'a> {
    pub(super) image: &'a StoredImage,
    /// The one of its names that was given; None: it was meant by its digest.
    pub(super) reference: Option<String>,
}

/// Digits of a digest that are enough, as long as one image has them.
const ENOUGH: usize = 6;

/// By one of its names, or its digest or the beginning of that.
pub(super) fn pick<'a>(images: &'a [StoredImage], word: &str) -> Result<Picked<'a>, String> {
    let full = Source::parse(word).map(|source| source.normalized());
    for image in images {
        if let Some(reference) = full.iter().find(|name| image.names.contains(name)) {
            return Ok(Picked { image, reference: Some(reference.clone()) });
        }
    }
    let digits = word.rsplit_once('@').map_or(word, |(_, digest)| digest);
    let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
    let is_digest = digits.len() >= ENOUGH && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let of_digest = |image: &&StoredImage| {
        let by = |text: &str, mark: &str| text.rsplit_once(mark).is_some_and(|(_, own)| own.starts_with(digits));
        is_digest && (by(&image.image_ref.folder, "sha256-") || by(&image.image_ref.id, "sha256:"))
    };
    let mut found = images.iter().filter(of_digest);
    match (found.next(), found.next()) {
        (Some(image), None) => Ok(Picked { image, reference: None }),
        (Some(_), Some(_)) => Err(format!("{word}: several images begin like this: give more of the digest")),
        _ => Err(format!("{word}: no such image; hpk image list shows all")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::ImageRef;

    fn image(digits: &str, names: &[&str]) -> StoredImage {
        let image_ref = ImageRef { folder: format!("sha256-{digits}"), id: format!("r/x@sha256:{digits}") };
        let names = names.iter().map(ToString::to_string).collect();
        let last_used = std::time::SystemTime::UNIX_EPOCH;
        StoredImage { image_ref, names, size: 1, last_used, layout: hpk_images::Layout::Folder, takes: None }
    }

    #[test]
    fn names_and_digests() {
        let images = [image("abcdef01", &["docker.io/library/busybox:1"]), image("abcdef02", &[])];
        let picked =
            |word: &str| pick(&images, word).map(|p| (p.image.image_ref.folder.clone(), p.reference.is_some()));
        assert_eq!(picked("busybox:1"), Ok(("sha256-abcdef01".into(), true)));
        assert_eq!(picked("sha256:abcdef02"), Ok(("sha256-abcdef02".into(), false)));
        assert_eq!(picked("r/x@sha256:abcdef02"), Ok(("sha256-abcdef02".into(), false)));
        assert!(picked("abcdef0").unwrap_err().contains("several"));
        for word in ["abcde", "busybox:2", ""] {
            assert!(picked(word).unwrap_err().contains("hpk image list"), "{word}");
        }
    }
}
