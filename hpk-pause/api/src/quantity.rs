//! Kubernetes quantities (`500m`, `64Mi`, `1.5`, `2e3`) as exact integers.
//!
//! Owns the arithmetic of `resource.Quantity` that is needed here: value and milli-value, rounded up, and bytes as text.
//! Never keeps a quantity in floating point.

/// Thousandths of the unit, rounded up. None: not a quantity.
#[must_use]
pub fn milli(text: &str) -> Option<u64> {
    scaled(text, 1000)
}

/// Whole units, rounded up. None: not a quantity.
#[must_use]
pub fn value(text: &str) -> Option<u64> {
    scaled(text, 1)
}

/// Bytes as a Kubernetes quantity: in the largest unit without a rest, binary units first.
#[must_use]
pub fn format(bytes: u64) -> String {
    const UNITS: [(&str, &str); 5] = [("Ki", "k"), ("Mi", "M"), ("Gi", "G"), ("Ti", "T"), ("Pi", "P")];
    let largest = |base: u64| {
        let mut found = None;
        let mut unit = base;
        for (index, _) in UNITS.iter().enumerate() {
            if bytes == 0 || !bytes.is_multiple_of(unit) {
                break;
            }
            found = Some((index, bytes / unit));
            unit = unit.saturating_mul(base);
        }
        found
    };
    match (largest(1024), largest(1000)) {
        (Some((index, n)), _) => format!("{n}{}", UNITS[index].0),
        (None, Some((index, n))) => format!("{n}{}", UNITS[index].1),
        (None, None) => bytes.to_string(),
    }
}

fn scaled(text: &str, factor: u128) -> Option<u64> {
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // digits / 10^fraction.len() * multiplier * factor, kept as one fraction of integers.
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (multiplier, divisor) = suffix_ratio(suffix)?;
    let numerator = digits.checked_mul(multiplier)?.checked_mul(factor)?;
    let denominator = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?.checked_mul(divisor)?;
    u64::try_from(numerator.div_ceil(denominator)).ok()
}

fn suffix_ratio(suffix: &str) -> Option<(u128, u128)> {
    let binary = |power: u32| Some((1_u128 << (10 * power), 1));
    let decimal = |power: u32| Some((10_u128.pow(power), 1));
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let ratio = 10_u128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, ratio) } else { (ratio, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        for (text, units, thousandths) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("500m", 1, 500),
            ("1.5", 2, 1500),
            ("0.1", 1, 100),
            (".5", 1, 500),
            ("100u", 1, 1),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1k", 1000, 1_000_000),
            ("2e3", 2000, 2_000_000),
            ("12E-1", 2, 1200),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
        ] {
            assert_eq!(value(text), Some(units), "{text}");
            assert_eq!(milli(text), Some(thousandths), "{text}");
        }
        for bad in ["", "x", "1 Mi", "1Q", "-1", "e3", "1.2.3"] {
            assert_eq!(value(bad), None, "{bad}");
        }
    }

    #[test]
    fn quantities_are_short() {
        for (bytes, text) in
            [(0, "0"), (7, "7"), (1 << 10, "1Ki"), (3 << 29, "1536Mi"), (1_000_000, "1M"), (1 << 50, "1Pi")]
        {
            assert_eq!(format(bytes), text);
            assert_eq!(value(text), Some(bytes));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: u64) {
            prop_assert_eq!(value(&format(bytes)), Some(bytes));
        }

        #[test]
        fn total(text in "\\PC{0,12}") {
            let _ = value(&text);
        }

        #[test]
        fn integers_are_exact(n in 0_u64..1 << 50) {
            prop_assert_eq!(value(&n.to_string()), Some(n));
            prop_assert_eq!(milli(&format!("{n}m")), Some(n));
        }
    }
}
