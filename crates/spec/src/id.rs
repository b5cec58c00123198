/// Whether `id` may name something a user makes: a letter, then letters, digits, `-`, `.`, `_`.
pub fn id_wellformed(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// The candidate most like `word`, if one is close enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = candidates.into_iter().map(|c| (edits(word, c), c)).min_by_key(|&(d, _)| d)?;
    let allowed = (word.chars().count().max(best.chars().count()) / 3).clamp(1, 4);
    (distance <= allowed).then_some(best)
}

/// Edit distance in which a swap of neighbours counts once (restricted Damerau-Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let cost = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + cost);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        assert!(id_wellformed("a-b.c_1"));
        for bad in ["", "1a", "#block001", "a b", "a,b", "ä"] {
            assert!(!id_wellformed(bad), "{bad}");
        }
    }

    #[test]
    fn nearest_word() {
        assert_eq!(nearest("-dirve", ["-drive", "-device", "-display"]), Some("-drive"));
        assert_eq!(nearest("readnoly", ["readonly", "format"]), Some("readonly"));
        assert_eq!(nearest("xyzzy", ["drive", "device"]), None);
        assert_eq!(nearest("", []), None);
    }
}
