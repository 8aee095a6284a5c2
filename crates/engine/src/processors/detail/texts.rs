//! The prompt of each thing: one for all, or several with `[SEP]` between them, as ADetailer has it.

/// Between the prompts of one thing and the next.
const NEXT: &str = "[SEP]";
/// In the place of a prompt: the thing stays as it is.
const SKIP: &str = "[SKIP]";
/// Stands for the prompt of the whole picture.
const WHOLE: &str = "[PROMPT]";

/// What is drawn in the place of a thing; `None` where it stays as it is.
///
/// `text` is the pass' own; where it, or its part for thing number `index`, is empty, `whole` is meant. Things beyond the
/// last part have the last one.
pub(super) fn prompt_of(text: &str, whole: &str, index: usize) -> Option<String> {
    let parts: Vec<&str> = text.split(NEXT).map(str::trim).collect();
    let part = parts[index.min(parts.len() - 1)];
    match part {
        "" => Some(whole.to_owned()),
        SKIP => None,
        part => Some(part.replace(WHOLE, whole)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_have_prompts_of_their_own() {
        let of = |text: &str, index| prompt_of(text, "a crowd", index);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of("", 3), some("a crowd"));
        assert_eq!(of("a smile", 3), some("a smile"));
        let several = "blue eyes [SEP] [SKIP][SEP][SEP]\n[PROMPT], old";
        assert_eq!(of(several, 0), some("blue eyes"));
        assert_eq!(of(several, 1), None);
        assert_eq!(of(several, 2), some("a crowd"));
        assert_eq!(of(several, 3), some("a crowd, old"));
        assert_eq!(of(several, 9), some("a crowd, old"));
    }
}
