/// A size in bytes: a decimal number, possibly with a fraction, or a hexadecimal one, and an
/// optional suffix B, K, M, G, T, P, E (powers of 1024, either case). A number without suffix is
/// in units of `unit` bytes. `None` when malformed or out of range of 64 bits.
pub fn parse_size(text: &str, unit: u64) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        if hex.starts_with('+') {
            return None;
        }
        return u64::from_str_radix(hex, 16).ok()?.checked_mul(unit);
    }
    let (number, scale) = match text.char_indices().next_back() {
        Some((at, last)) if last.is_ascii_alphabetic() => {
            (&text[..at], 1u64.checked_shl(suffix_shift(last)?)?)
        }
        _ => (text, unit),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (number, None),
    };
    if whole.is_empty() || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bytes = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let Some(fraction) = fraction else { return Some(bytes) };
    if fraction.is_empty()
        || fraction.len() > 18
        || !fraction.bytes().all(|b| b.is_ascii_digit())
        || scale == 1
    {
        return None;
    }
    let part =
        u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / 10u128.pow(fraction.len() as u32);
    bytes.checked_add(u64::try_from(part).ok()?)
}

fn suffix_shift(suffix: char) -> Option<u32> {
    Some(match suffix.to_ascii_uppercase() {
        'B' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        'P' => 50,
        'E' => 60,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512", 1 << 20), Some(512 << 20));
        assert_eq!(parse_size("1.5G", 1), Some(3 << 29));
        assert_eq!(parse_size("0x10", 1), Some(16));
        assert_eq!(parse_size("64k", 1), Some(65536));
        assert_eq!(parse_size("7b", 1 << 20), Some(7));
        for bad in ["", "k", "1kk", "-1", "1.5", "1.", "99999999999G", "16E", "0x", "1e3", "é"] {
            assert_eq!(parse_size(bad, 1), None, "{bad}");
        }
    }
}
