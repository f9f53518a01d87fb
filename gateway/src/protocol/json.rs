//! JSON handled as text: members get the bytes that the publisher wrote, without the white space between tokens. Nothing
//! here builds a tree of values.

/// Appends valid JSON `text` without the white space between its tokens (RFC 8259 section 2).
pub(crate) fn put_compact(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')) {
        out.extend_from_slice(bytes); // the usual case: programs write no white space
        return;
    }
    out.reserve(bytes.len());
    let (mut in_string, mut escaped) = (false, false);
    for &b in bytes {
        if in_string {
            (in_string, escaped) = match (escaped, b) {
                (true, _) => (true, false),
                (false, b'\\') => (true, true),
                (false, b'"') => (false, false),
                (false, _) => (true, false),
            };
        } else if matches!(b, b' ' | b'\t' | b'\n' | b'\r') {
            continue;
        } else {
            in_string = b == b'"';
        }
        out.push(b);
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn compact(text: &str) -> String {
        let mut out = Vec::new();
        put_compact(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_white_space_between_tokens_goes() {
        for (given, kept) in [
            ("{ \"a\" : 1.0 ,\n\t\"b c\": [ 1e400, -0 ] }", "{\"a\":1.0,\"b c\":[1e400,-0]}"),
            (r#" "a \" b \\" "#, r#""a \" b \\""#),
            (r#"["\\ ", " x"]"#, r#"["\\ "," x"]"#),
            ("12345678901234567890123", "12345678901234567890123"),
            ("\"\\u00e9 é\"", "\"\\u00e9 é\""),
        ] {
            assert_eq!(compact(given), kept);
        }
    }

    proptest! {
        #[test]
        fn the_value_stays_the_same(text in "[ \\t\\n]{0,3}\\{[ \\n]{0,2}\"k[ \\\\n\\\\\"]{0,4}z\"[ ]{0,2}:[ ]{0,2}[0-9]{1,20}[ ]{0,2}\\}") {
            prop_assume!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            let value = |t: &str| serde_json::from_str::<serde_json::Value>(t).unwrap();
            prop_assert_eq!(value(&compact(&text)), value(&text));
        }
    }
}
