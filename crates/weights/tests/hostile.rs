//! Files from strangers: every way in which they can be wrong has its own error, which names the file, the tensor
//! where there is one, and what to do.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets an error should say where"
)]

#[path = "hostile/folders.rs"]
mod folders;
#[path = "hostile/headers.rs"]
mod headers;
#[path = "hostile/others.rs"]
mod others;
#[path = "hostile/requests.rs"]
mod requests;
#[path = "hostile/shards.rs"]
mod shards;
#[path = "hostile/torch.rs"]
mod torch;

use std::collections::BTreeSet;

use lowtide_weights::Error;

/// One wrong thing, and what must be said of it.
pub(crate) struct Case {
    label: &'static str,
    /// The variant of [`Error`].
    variant: &'static str,
    /// What the message must contain, besides the file and the tensor: numbers, reasons, advice.
    says: &'static [&'static str],
    /// The file the message must name.
    file: &'static str,
    /// The tensor the message must name.
    tensor: Option<&'static str>,
    error: Error,
}

impl Case {
    fn check(&self) {
        let text = self.error.to_string();
        assert_eq!(
            variant_of(&self.error),
            self.variant,
            "{}: {text}",
            self.label
        );
        let tensor = self.tensor.map(|tensor| format!("'{tensor}'"));
        for part in self
            .says
            .iter()
            .copied()
            .chain([self.file])
            .chain(tensor.as_deref())
        {
            assert!(
                text.contains(part),
                "{}: '{part}' is not in: {text}",
                self.label
            );
        }
        assert!(
            !text.chars().any(char::is_control),
            "{}: control characters in: {text:?}",
            self.label
        );
        assert!(
            text.len() < 1200,
            "{}: {} bytes of message",
            self.label,
            text.len()
        );
    }
}

fn variant_of(error: &Error) -> String {
    let debug = format!("{error:?}");
    debug
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn headers_that_lie_are_refused_by_name() {
    headers::cases().iter().for_each(Case::check);
}

#[test]
fn folders_that_lie_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    folders::cases(folder.path()).iter().for_each(Case::check);
}

#[test]
fn shards_that_do_not_fit_their_index_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    shards::cases(folder.path()).iter().for_each(Case::check);
}

#[test]
fn requests_that_cannot_be_met_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    requests::cases(folder.path()).iter().for_each(Case::check);
}

#[test]
fn pickles_and_archives_that_lie_are_refused_by_name() {
    torch::cases().iter().for_each(Case::check);
}

#[test]
fn files_of_other_programs_that_lie_are_refused_by_name() {
    others::cases().iter().for_each(Case::check);
}

#[test]
fn no_variant_is_left_untried() {
    let folder = tempfile::tempdir().unwrap();
    let mut cases = headers::cases();
    cases.extend(folders::cases(folder.path()));
    cases.extend(torch::cases());
    cases.extend(others::cases());
    cases.extend(shards::cases(folder.path()));
    cases.extend(requests::cases(folder.path()));
    let tried: BTreeSet<String> = cases.iter().map(|case| case.variant.to_owned()).collect();
    let source = include_str!("../src/error.rs");
    let body = source
        .split("pub enum Error {")
        .nth(1)
        .unwrap()
        .split("\n}\n")
        .next()
        .unwrap();
    let declared: BTreeSet<String> = body
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.strip_suffix(" {"))
        .filter(|name| name.chars().all(char::is_alphanumeric))
        .map(str::to_owned)
        .collect();
    assert!(
        declared.len() > 30,
        "the variants were not found in the source: {declared:?}"
    );
    assert_eq!(tried, declared);
}
