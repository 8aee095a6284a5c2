//! Who may use whom. Sets are compared whole, so that every rule says both what must be there and what must not, and a
//! misspelt name fails.

use lowtide_tidy::packages::{Graph, OURS, Package};
use std::collections::BTreeSet;

/// The arrows of the crate map in ARCHITECTURE.md.
const ARROWS: [(&str, &[&str]); 14] = [
    ("lowtide-core", &[]),
    ("lowtide-weights", &["lowtide-core"]),
    ("lowtide-kernels", &[]),
    ("lowtide-cuda", &["lowtide-kernels"]),
    ("lowtide-models", &["lowtide-core", "lowtide-kernels"]),
    (
        "lowtide-engine",
        &[
            "lowtide-core",
            "lowtide-kernels",
            "lowtide-media",
            "lowtide-models",
            "lowtide-weights",
        ],
    ),
    ("lowtide-jobs", &["lowtide-core"]),
    ("lowtide-media", &[]),
    (
        "lowtide-worker",
        &[
            "lowtide-core",
            "lowtide-engine",
            "lowtide-jobs",
            "lowtide-weights",
        ],
    ),
    ("lowtide-bucket", &["lowtide-core", "lowtide-jobs"]),
    ("lowtide-server", &["lowtide-core", "lowtide-jobs"]),
    ("lowtide-hub", &["lowtide-core"]),
    (
        "lowtide-cli",
        &[
            "lowtide-bucket",
            "lowtide-core",
            "lowtide-engine",
            "lowtide-hub",
            "lowtide-jobs",
            "lowtide-kernels",
            "lowtide-media",
            "lowtide-server",
            "lowtide-weights",
            "lowtide-worker",
        ],
    ),
    ("lowtide-tidy", &[]),
];

/// What the default build must not contain, as beginnings of names, and why.
const NOT_BY_DEFAULT: [(&str, &str); 3] = [
    (
        "candle",
        "its tensors own their memory, so a weight could not be used where it was read",
    ),
    ("cudarc", "the default program never links CUDA"),
    ("openssl", "needs a system library"),
];

/// What the arm that computes must not contain, as beginnings of names, and why.
const NOT_WHERE_IT_COMPUTES: [(&str, &str); 4] = [
    ("tokio", "nothing there waits for many things at once"),
    ("hyper", "it never sees HTTP"),
    ("axum", "it never sees HTTP"),
    ("ureq", "it never sees HTTP"),
];

/// What the arm that speaks must not contain, as beginnings of names, and why.
const NOT_WHERE_IT_SPEAKS: [(&str, &str); 4] = [
    ("lowtide-engine", "it never sees a tensor"),
    ("lowtide-kernels", "it never computes"),
    ("lowtide-models", "it never sees a tensor"),
    ("rayon", "it never computes"),
];

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ours(names: BTreeSet<String>) -> BTreeSet<String> {
    names
        .into_iter()
        .filter(|name| name.starts_with(OURS))
        .collect()
}

#[test]
fn arrows_point_one_way() {
    let graph = Graph::resolved();
    for (from, to) in ARROWS {
        assert_eq!(
            ours(graph.direct(from)),
            set(to),
            "what {from} uses of ours"
        );
    }
}

#[test]
fn every_crate_has_its_rule() {
    let members = members(&Graph::resolved());
    assert_eq!(members, ARROWS.map(|(name, _)| name.to_owned()).into());
}

fn members(graph: &Graph) -> BTreeSet<String> {
    let members = graph.packages.values().filter(|package| package.member);
    members.map(|package| package.name.clone()).collect()
}

#[test]
fn core_needs_nothing_but_its_error_derive() {
    assert_eq!(
        Graph::resolved().direct("lowtide-core"),
        set(&["thiserror"])
    );
}

#[test]
fn kernels_need_numbers_threads_and_pages() {
    assert_eq!(
        Graph::resolved().direct("lowtide-kernels"),
        set(&["half", "libc", "rayon"])
    );
}

#[test]
fn the_gpu_needs_its_driver_and_numbers() {
    assert_eq!(
        Graph::resolved().direct("lowtide-cuda"),
        set(&[
            "cudarc",
            "half",
            "libc",
            "libloading",
            "lowtide-kernels",
            "nvml-wrapper",
            "thiserror"
        ])
    );
}

#[test]
fn the_command_line_alone_reads_arguments_and_wraps_any_error() {
    let graph = Graph::resolved();
    for only_cli in ["clap", "anyhow"] {
        let users: Vec<&str> = ARROWS
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| graph.direct(name).contains(only_cli))
            .collect();
        assert_eq!(users, ["lowtide-cli"], "who uses {only_cli}");
    }
}

#[test]
fn the_default_program_is_free_of_what_it_must_not_carry() {
    let everything = Graph::resolved().transitive("lowtide-cli");
    // The walk does see what lies deep: thiserror is used by core alone and by crates above it.
    assert!(everything.contains("thiserror-impl"), "{everything:?}");
    assert_eq!(
        forbidden(&everything, &NOT_BY_DEFAULT),
        Vec::<String>::new()
    );
}

#[test]
fn computing_and_speaking_meet_only_in_the_command_line() {
    let graph = Graph::resolved();
    for computes in ["lowtide-engine", "lowtide-worker"] {
        let everything = graph.transitive(computes);
        assert!(
            everything.contains("lowtide-kernels"),
            "{computes} computes"
        );
        assert_eq!(
            forbidden(&everything, &NOT_WHERE_IT_COMPUTES),
            Vec::<String>::new()
        );
    }
    let everything = graph.transitive("lowtide-server");
    assert!(everything.contains("axum"), "the server speaks");
    assert_eq!(
        forbidden(&everything, &NOT_WHERE_IT_SPEAKS),
        Vec::<String>::new()
    );
}

#[test]
fn what_must_not_be_carried_would_be_found() {
    let all = [
        &NOT_BY_DEFAULT[..],
        &NOT_WHERE_IT_COMPUTES,
        &NOT_WHERE_IT_SPEAKS,
    ];
    for (name, _) in all.concat() {
        let mut graph = Graph::default();
        let package = |name: &str, uses: &[&str]| Package {
            name: name.to_owned(),
            uses: set(uses),
            ..Package::default()
        };
        graph
            .packages
            .insert("a".to_owned(), package("lowtide-cli", &["b"]));
        graph
            .packages
            .insert("b".to_owned(), package("between", &["c"]));
        graph
            .packages
            .insert("c".to_owned(), package(&format!("{name}-core"), &[]));
        assert_eq!(
            forbidden(&graph.transitive("lowtide-cli"), &all.concat()).len(),
            1,
            "{name}"
        );
    }
}

fn forbidden(names: &BTreeSet<String>, not: &[(&str, &str)]) -> Vec<String> {
    let reason = |name: &String| {
        not.iter()
            .find(|(beginning, _)| name.starts_with(beginning))
    };
    names
        .iter()
        .filter_map(|name| reason(name).map(|(_, why)| format!("{name}: {why}")))
        .collect()
}

#[test]
#[should_panic(expected = "there is no package 'lowtide-cro'")]
fn a_misspelt_name_fails() {
    Graph::resolved().direct("lowtide-cro");
}

#[test]
fn cargo_run_means_the_one_program() {
    let graph = Graph::resolved();
    let programs: Vec<&str> = graph
        .packages
        .values()
        .filter(|package| package.default_member)
        .flat_map(|package| package.programs.iter().map(String::as_str))
        .collect();
    assert_eq!(programs, ["lowtide"]);
}
