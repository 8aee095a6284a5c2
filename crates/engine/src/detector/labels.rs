//! What a detector's classes are called: a list or a map from numbers to names, as JSON or as Python writes it.

/// Longest text of names that is looked at: a thousand classes have 20 KiB.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Longest name.
const NAME_CHARS_MAX: usize = 100;

/// The names of `count` classes; a class that the text does not name is `class 7`.
pub(super) fn of(text: Option<&str>, count: usize) -> Vec<String> {
    let mut labels: Vec<String> = (0..count).map(|class| format!("class {class}")).collect();
    let text = text.filter(|text| text.len() <= TEXT_BYTES_MAX);
    for (class, name) in text.map(named).unwrap_or_default() {
        let plain = !name.is_empty() && !name.chars().any(char::is_control);
        if let Some(label) = labels.get_mut(class).filter(|_| plain) {
            *label = name.chars().take(NAME_CHARS_MAX).collect();
        }
    }
    labels
}

/// Numbers and names, in the order of the text. Values are strings in either kind of quotes; keys are numbers, with quotes
/// or without, or missing, where names count from 0.
fn named(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut key: Option<usize> = None;
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        match next {
            '\'' | '"' => {
                let mut word = String::new();
                while let Some(inner) = chars.next() {
                    match inner {
                        '\\' => word.extend(chars.next()),
                        inner if inner == next => break,
                        inner => word.push(inner),
                    }
                }
                while chars.next_if(|c| c.is_whitespace()).is_some() {}
                // What stands before a colon is a key.
                if chars.peek() == Some(&':') {
                    key = word.trim().parse().ok();
                } else {
                    found.push((key.take().unwrap_or(found.len()), word));
                }
            }
            digit if digit.is_ascii_digit() => {
                let mut number = String::from(digit);
                while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                    number.push(digit);
                }
                key = number.parse().ok();
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_json_and_as_python_writes_them() {
        for text in [
            "{0: 'face', 1: 'dog\\'s nose'}",
            "{0: 'face', 1: \"dog's nose\"}",
            r#"{"0": "face", "1": "dog's nose"}"#,
            "{1: \"dog's nose\", 0: 'face'}",
            r#"["face", "dog's nose"]"#,
            "['face', \"dog's nose\"]",
        ] {
            assert_eq!(of(Some(text), 2), ["face", "dog's nose"], "{text}");
        }
    }

    #[test]
    fn classes_without_a_name_have_a_number() {
        assert_eq!(of(None, 2), ["class 0", "class 1"]);
        assert_eq!(of(Some("{1: 'hand', 7: 'x'}"), 2), ["class 0", "hand"]);
        assert_eq!(
            of(Some("{0: '\u{1b}[2J', 1: ''"), 2),
            ["class 0", "class 1"]
        );
        assert_eq!(of(Some("'"), 1), ["class 0"]);
        assert_eq!(of(Some("99999999999999999999999: 'a'"), 1), ["a"]);
    }
}
