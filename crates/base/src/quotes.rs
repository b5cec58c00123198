//! JSON as QMP and the command line have it: strings may stand in single quotes.

/// `text` with all strings in double quotes; what is no JSON stays none.
pub fn double(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (inside, c) {
            (None, '"' | '\'') => {
                inside = Some(c);
                out.push('"');
            }
            (Some(quote), c) if c == quote => {
                inside = None;
                out.push('"');
            }
            (Some(_), '"') => out.push_str("\\\""),
            (Some(_), '\\') => match chars.next() {
                Some('\'') => out.push('\''),
                next => {
                    out.push('\\');
                    out.extend(next);
                }
            },
            (_, c) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::double;

    #[test]
    fn strings_come_in_double_quotes() {
        for (text, wanted) in [
            (r#"{'a': "b", "c": 'd'}"#, r#"{"a": "b", "c": "d"}"#),
            (r#"['it\'s', "it's", 'say "x"']"#, r#"["it's", "it's", "say \"x\""]"#),
            (r#"["\"", '\\', '\u0041']"#, r#"["\"", "\\", "\u0041"]"#),
            (r#"{'open"#, r#"{"open"#),
            (r#"'\"#, r#""\"#),
        ] {
            assert_eq!(double(text), wanted);
        }
    }
}
