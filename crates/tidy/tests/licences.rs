//! Everything the program is built from may be used, changed and passed on with it.

use lowtide_tidy::licence::satisfied;
use lowtide_tidy::packages::Graph;
use lowtide_tidy::tree::root;

/// Licences that ask for no more than their notice. Not here: any that reaches into the code that uses it.
const ALLOWED: [&str; 14] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "Zlib",
    "0BSD",
    "CC0-1.0",
    // Of data: the certificates that browsers trust.
    "CDLA-Permissive-2.0",
    "Unicode-3.0",
    "Unlicense",
];

#[test]
fn every_package_has_a_licence_from_the_list() {
    let graph = Graph::resolved();
    let others = graph
        .packages
        .values()
        .filter(|package| !package.member)
        .count();
    assert!(
        others > 20,
        "cargo named only {others} packages: the graph is not complete"
    );
    let wrong: Vec<String> = graph
        .packages
        .values()
        .filter(|package| {
            let expression = package.licence.as_deref();
            expression.and_then(|expression| satisfied(expression, &ALLOWED)) != Some(true)
        })
        .map(|package| {
            format!(
                "{} {}: {:?}",
                package.name, package.version, package.licence
            )
        })
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn our_own_is_what_the_manifests_say() {
    for package in Graph::resolved()
        .packages
        .values()
        .filter(|package| package.member)
    {
        assert_eq!(
            package.licence.as_deref(),
            Some("MIT OR Apache-2.0"),
            "{}",
            package.name
        );
    }
    for (file, says) in [
        ("LICENSE-MIT", "Permission is hereby granted"),
        ("LICENSE-APACHE", "Apache License"),
        (
            "crates/cli/demo/LICENCES.md",
            "Copyright (c) Microsoft Corporation",
        ),
    ] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(text.contains(says), "{file}");
    }
}
