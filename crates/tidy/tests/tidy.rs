//! The house style, as far as a program can tell. What clippy and rustc already check is left to them.

use lowtide_tidy::rust::{Source, has_word};
use lowtide_tidy::tree::{TextFile, root, text_files};

/// Longer files hold more than one thing.
const FILE_LINES_MAX: usize = 600;
/// One architecture is one file, repeating rather than abstracting.
const ARCHITECTURE_LINES_MAX: usize = 1_100;
/// Longer functions do more than one thing.
const FUNCTION_LINES_MAX: usize = 70;

/// Files that are longer, with the most lines they may have. The list may only shrink: lower a number when a file gets
/// shorter, and remove the line when it fits.
const LONG_FILES: [(&str, usize); 0] = [];

/// Functions that are longer, with the most lines they may have; as above.
const LONG_FUNCTIONS: [(&str, &str, usize); 2] = [
    ("crates/weights/src/header.rs", "check_tensor", 81),
    ("crates/weights/src/write.rs", "render_header", 80),
];

/// Where `unsafe` is at home.
const UNSAFE_HOMES: [&str; 4] = [
    "crates/kernels/",
    "crates/cuda/",
    "crates/engine/src/device/",
    "crates/engine/src/device.rs",
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = [
    "util", "utils", "helper", "helpers", "common", "misc", "manager", "managers",
];

fn rust_files() -> Vec<(TextFile, Source)> {
    let files: Vec<_> = text_files()
        .into_iter()
        .filter(|file| file.path.ends_with(".rs"))
        .map(|file| {
            let source = Source::new(&file.text);
            (file, source)
        })
        .collect();
    assert!(
        files
            .iter()
            .any(|(file, _)| file.path == "crates/tidy/tests/tidy.rs"),
        "the walk finds this file"
    );
    files
}

/// Tests, benches and examples may do what a library must not.
fn is_test_file(path: &str) -> bool {
    ["/tests/", "/benches/", "/examples/"]
        .iter()
        .any(|folder| path.contains(folder))
        || path.ends_with("/tests.rs")
}

fn expect_none(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for (file, _) in rust_files() {
        let lines = file.text.lines().count();
        let architecture =
            file.path.starts_with("crates/models/src/") && file.path.matches('/').count() == 3;
        let limit = if architecture {
            ARCHITECTURE_LINES_MAX
        } else {
            FILE_LINES_MAX
        };
        let listed = LONG_FILES.iter().find(|(path, _)| *path == file.path);
        let most = listed.map_or(limit, |(_, most)| *most);
        if lines > most {
            found.push(format!("{} has {lines} lines, at most {most}", file.path));
        } else if listed.is_some() && lines <= limit {
            found.push(format!("{} fits now: remove it from the list", file.path));
        }
    }
    expect_none("a file holds one thing", found);
}

#[test]
fn functions_are_short() {
    let mut found = Vec::new();
    let mut met = Vec::new();
    for (file, source) in rust_files() {
        if is_test_file(&file.path) {
            continue;
        }
        for (line, name, lines) in source.functions() {
            let listed = LONG_FUNCTIONS
                .iter()
                .find(|(path, known, _)| (*path, *known) == (file.path.as_str(), name.as_str()));
            let most = listed.map_or(FUNCTION_LINES_MAX, |(_, _, most)| *most);
            if lines > most {
                found.push(format!(
                    "{}:{line} {name} has {lines} lines, at most {most}",
                    file.path
                ));
            } else if lines > FUNCTION_LINES_MAX {
                met.extend(listed);
            }
        }
    }
    let over = LONG_FUNCTIONS.iter().filter(|known| !met.contains(known));
    found.extend(
        over.map(|(path, name, _)| format!("{path} {name} fits now: remove it from the list")),
    );
    expect_none("a function does one thing", found);
}

#[test]
fn modules_are_named_for_what_is_inside() {
    let mut found = Vec::new();
    for file in text_files() {
        if file.name() == "mod.rs" {
            found.push(format!("{}: write foo.rs beside foo/", file.path));
        }
        let stem = file.name().strip_suffix(".rs").unwrap_or_default();
        let folders = file.path.split('/').rev().skip(1);
        if file.path.ends_with(".rs")
            && std::iter::once(stem)
                .chain(folders)
                .any(|part| EMPTY_NAMES.contains(&part))
        {
            found.push(format!("{}: the name says nothing", file.path));
        }
    }
    for (file, source) in rust_files() {
        for (index, line) in source.code.iter().enumerate() {
            for name in EMPTY_NAMES
                .iter()
                .filter(|name| has_word(line, &format!("mod {name}")))
            {
                found.push(format!(
                    "{}:{}: mod {name} says nothing",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    expect_none("no mod.rs, no empty names", found);
}

#[test]
fn errors_are_handled_where_they_can_happen() {
    let mut found = Vec::new();
    for (file, source) in rust_files() {
        if is_test_file(&file.path) {
            continue;
        }
        for (number, line) in source.code_outside_tests() {
            if [".unwrap()", ".unwrap_err()", ".unwrap_unchecked()"]
                .iter()
                .any(|call| line.contains(call))
            {
                found.push(format!(
                    "{}:{number}: say with expect why it cannot fail",
                    file.path
                ));
            }
        }
    }
    expect_none("no unwrap outside tests", found);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("HA", "CK"),
    ];
    let macros = [
        concat!("to", "do!"),
        concat!("unimple", "mented!"),
        concat!("db", "g!"),
    ];
    let mut found = Vec::new();
    for (file, source) in rust_files() {
        for (index, (code, comment)) in source.code.iter().zip(&source.comments).enumerate() {
            let marked = marks.iter().any(|mark| has_word(comment, mark));
            if marked || macros.iter().any(|name| code.contains(name)) {
                found.push(format!(
                    "{}:{}: {}{}",
                    file.path,
                    index + 1,
                    code.trim(),
                    comment.trim()
                ));
            }
        }
    }
    for file in text_files()
        .iter()
        .filter(|file| file.path.ends_with(".md") || file.path.starts_with("scripts/"))
    {
        for (index, line) in file.text.lines().enumerate() {
            if marks[..2].iter().any(|mark| has_word(line, mark)) {
                found.push(format!("{}:{}: {line}", file.path, index + 1));
            }
        }
    }
    expect_none("what is not done is an issue, not a remark", found);
}

#[test]
fn unsafe_code_lives_where_it_is_at_home() {
    let word = concat!("un", "safe");
    let mut found = Vec::new();
    let mut at_home = 0;
    for (file, source) in rust_files() {
        let home = UNSAFE_HOMES.iter().any(|home| file.path.starts_with(home));
        for (index, line) in source
            .code
            .iter()
            .enumerate()
            .filter(|(_, line)| has_word(line, word))
        {
            if home {
                at_home += 1;
            } else {
                found.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
        let crate_root = ["/src/lib.rs", "/src/main.rs"]
            .iter()
            .any(|end| file.path.ends_with(end));
        let may = ["crates/kernels/", "crates/cuda/", "crates/engine/"]
            .iter()
            .any(|start| file.path.starts_with(start));
        let forbids = source
            .code
            .iter()
            .any(|line| line.contains(concat!("#![forbid(un", "safe_code)]")));
        if file.path.starts_with("crates/") && crate_root && !may && !forbids {
            found.push(format!("{} does not forbid it", file.path));
        }
    }
    expect_none(
        "kernels and devices are where memory is touched by hand",
        found,
    );
    assert!(
        at_home > 0,
        "the rule finds what it looks for where it is allowed"
    );
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let manifests: Vec<_> = text_files()
        .into_iter()
        .filter(|file| {
            file.path.starts_with("crates/")
                && file.path.matches('/').count() == 2
                && file.name() == "Cargo.toml"
        })
        .collect();
    assert!(manifests.len() >= 7, "{} manifests", manifests.len());
    let without = manifests
        .iter()
        .filter(|file| !file.text.contains("[lints]\nworkspace = true"));
    expect_none(
        "[lints] workspace = true",
        without.map(|file| file.path.clone()).collect(),
    );
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for lint in [
        "missing_docs",
        "unwrap_used",
        "undocumented_unsafe_blocks",
        "print_stdout",
    ] {
        assert!(workspace.contains(&format!("\n{lint} = \"")), "{lint}");
    }
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table = workspace
        .split("[workspace.dependencies]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let mut found = Vec::new();
    let mut before = "";
    let mut checked = 0;
    for line in table.lines() {
        let is_dependency = line.contains(" = ") && !line.starts_with('#');
        if is_dependency && !line.starts_with("lowtide-") {
            checked += 1;
            if !before.starts_with("# ") {
                found.push(line.to_owned());
            }
        }
        before = line;
    }
    assert!(checked >= 10, "{checked} dependencies");
    expect_none("a comment above each dependency", found);
}

#[test]
fn the_tree_speaks_of_the_project_alone() {
    // Pieces, so that this file does not name what it forbids.
    let anywhere = [
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("C:\\Us", "ers"),
        concat!("registry.npm", "js.org"),
        concat!("files.python", "hosted.org"),
        concat!("pypi.", "org/simple"),
        concat!("static.", "crates.io"),
        concat!("index.", "crates.io"),
        concat!(".inter", "nal:"),
        concat!("arti", "factory"),
    ];
    let mut found = Vec::new();
    for file in text_files() {
        // The lock file names the registry that every Rust program names.
        if file.path == "Cargo.lock" {
            continue;
        }
        for (index, line) in file.text.lines().enumerate() {
            for word in anywhere.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{}: {word}", file.path, index + 1));
            }
        }
    }
    expect_none("no path of somebody's machine, no package host", found);
}

#[test]
fn the_readme_names_two_commands_that_exist() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let readme = read("README.md");
    assert!(readme.contains("cargo run --release -- generate \"a red heart\" -o heart.png"));
    assert!(readme.contains("bash scripts/test"));
    assert!(
        read(".ci/run").contains("bash scripts/test"),
        "CI runs the README's test command"
    );
    assert!(read("scripts/test").starts_with("#!"));
}

#[test]
fn the_map_and_the_changelog_keep_up() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let architecture = read("ARCHITECTURE.md");
    let crates: Vec<String> = std::fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(crates.len() >= 7, "{crates:?}");
    let missing = crates
        .into_iter()
        .filter(|name| !architecture.contains(&format!("**`crates/{name}`**")));
    expect_none(
        "every crate has its paragraph in ARCHITECTURE.md",
        missing.collect(),
    );
    let version = format!("## {}", env!("CARGO_PKG_VERSION"));
    assert!(
        read("CHANGELOG.md").contains(&version),
        "CHANGELOG.md has no '{version}'"
    );
}

#[test]
fn relative_links_lead_somewhere() {
    let mut found = Vec::new();
    let mut checked = 0;
    for file in text_files()
        .iter()
        .filter(|file| file.path.ends_with(".md"))
    {
        let folder = root().join(&file.path).parent().unwrap().to_owned();
        for target in file
            .text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.contains(char::is_whitespace) {
                continue;
            }
            checked += 1;
            if !folder.join(path).exists() {
                found.push(format!("{}: {target}", file.path));
            }
        }
    }
    assert!(checked > 0, "no links were found at all");
    expect_none("links between our own pages", found);
}
