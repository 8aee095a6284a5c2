//! What the program says about itself.

use crate::Place;

#[test]
fn help_teaches_with_examples() {
    let place = Place::new();
    for (line, says) in [
        (
            "--help",
            &[
                "Examples:",
                "lowtide generate \"a red heart\" -o heart.png",
                "Exit codes:",
            ][..],
        ),
        (
            "generate --help",
            &[
                "Examples:",
                "--budget 6GiB",
                "--steps 9 --guidance 0",
                "--json",
            ],
        ),
        ("plan --help", &["Example:", "--budget"]),
        ("png-info --help", &["lowtide png-info heart.png"]),
        ("models --help", &["list", "show"]),
        ("doctor --help", &["--json"]),
        ("completions --help", &["bash", "zsh", "fish"]),
    ] {
        let text = place.line(line).ok();
        for part in says {
            assert!(text.contains(part), "{line} does not say {part}");
        }
    }
}

#[test]
fn every_option_has_a_word_of_help() {
    let text = Place::new().line("generate -h").ok();
    for option in [
        "--model",
        "--negative",
        "--size",
        "--steps",
        "--guidance",
        "--cfg-normalization",
        "--cfg-truncation",
        "--seed",
        "--count",
        "--output",
        "--quality",
        "--precision",
        "--budget",
        "--reserve",
        "--threads",
        "--json",
        "--quiet",
        "--noise",
        "--dump",
    ] {
        let line = text.lines().position(|line| {
            line.contains(&format!("{option} ")) || line.trim_end().ends_with(option)
        });
        let line = line.unwrap_or_else(|| panic!("{option} is not in the help"));
        let told = text.lines().skip(line).take(2).collect::<String>();
        assert!(told.split_whitespace().count() > 4, "{option}: {told}");
    }
}

#[test]
fn the_version_is_told() {
    assert_eq!(
        Place::new().line("--version").ok(),
        format!("lowtide {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn every_shell_gets_completions() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.run(["completions", shell]).ok();
        assert!(
            script.contains("png-info") && script.contains("budget"),
            "{shell}"
        );
    }
}

#[test]
fn nothing_asked_is_a_mistake() {
    let place = Place::new();
    assert!(place.line("").error(2).contains("--help"));
    assert!(place.line("generate").error(2).contains("<PROMPT>"));
    assert!(place.line("generat heart").error(2).contains("'generate'"));
}
