//! The signal that asks a container to end.

use hpk_images::ImageConfig;
use k8s_openapi::api::core::v1::Container;

/// SIGTERM.
pub(super) const USUAL: i32 = 15;

/// The container's own wins over the image's STOPSIGNAL. One that nobody knows is SIGTERM.
pub(super) fn of(container: &Container, image: &ImageConfig) -> i32 {
    let own = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    own.or(image.stop_signal.as_deref()).and_then(number).unwrap_or(USUAL)
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn number(text: &str) -> Option<i32> {
    let text = text.trim();
    if let Ok(given) = text.parse::<i32>() {
        return (1..=64).contains(&given).then_some(given);
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    for (base, first, sign) in [("RTMIN", 34, 1), ("RTMAX", 64, -1)] {
        if let Some(rest) = name.strip_prefix(base) {
            let offset: i32 = if rest.is_empty() { 0 } else { rest.trim_start_matches(['+', '-']).parse().ok()? };
            return Some(first + sign * offset).filter(|n| (34..=64).contains(n));
        }
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    Some(signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGNO", None),
            ("65", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
