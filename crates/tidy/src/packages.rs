//! What cargo resolved: packages, their licences, and who depends on whom.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Packages of the workspace begin with this.
pub const OURS: &str = "lowtide-";

/// One package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence expression.
    pub licence: Option<String>,
    /// Its programs.
    pub programs: Vec<String>,
    /// Whether it is a member of the workspace.
    pub member: bool,
    /// Whether `cargo run` and `cargo build` without a package mean it.
    pub default_member: bool,
    /// What it is built from: identifiers of other packages. What only its tests need is not among them.
    pub uses: BTreeSet<String>,
}

/// All packages of the workspace's graph with default features, by cargo's identifier.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The packages.
    pub packages: BTreeMap<String, Package>,
}

impl Graph {
    /// Asks cargo, without network: for every platform where all packages were fetched (`cargo fetch`), otherwise, with
    /// a note on standard error, for this one.
    ///
    /// # Panics
    /// When cargo cannot answer for this platform either.
    pub fn resolved() -> Graph {
        let everywhere = metadata(&[]);
        let metadata = everywhere.unwrap_or_else(|complaint| {
            let host = host();
            eprintln!("looking at {host} alone: {complaint}");
            metadata(&["--filter-platform", &host])
                .unwrap_or_else(|complaint| panic!("cargo metadata: {complaint}"))
        });
        Graph::read(&metadata).expect("cargo's metadata has the fields of format 1")
    }

    /// Reads `cargo metadata`, format 1; `None` where it is something else.
    pub fn read(metadata: &Value) -> Option<Graph> {
        let ids = |key: &str| -> Option<BTreeSet<&str>> {
            metadata[key]
                .as_array()?
                .iter()
                .map(Value::as_str)
                .collect()
        };
        let (members, default_members) =
            (ids("workspace_members")?, ids("workspace_default_members")?);
        let mut packages = BTreeMap::new();
        for package in metadata["packages"].as_array()? {
            let id = package["id"].as_str()?;
            let text = |key: &str| package[key].as_str().map(str::to_owned);
            let programs = package["targets"]
                .as_array()?
                .iter()
                .filter(|target| is_program(target));
            let programs = programs
                .filter_map(|target| target["name"].as_str().map(str::to_owned))
                .collect();
            packages.insert(
                id.to_owned(),
                Package {
                    name: text("name")?,
                    version: text("version")?,
                    licence: text("license"),
                    programs,
                    member: members.contains(id),
                    default_member: default_members.contains(id),
                    uses: BTreeSet::new(),
                },
            );
        }
        for node in metadata["resolve"]["nodes"].as_array()? {
            let uses = node["deps"]
                .as_array()?
                .iter()
                .filter(|dependency| is_built_from(dependency));
            let uses = uses
                .filter_map(|dependency| dependency["pkg"].as_str().map(str::to_owned))
                .collect();
            packages.get_mut(node["id"].as_str()?)?.uses = uses;
        }
        Some(Graph { packages })
    }

    /// The names of the packages that `name` names in its manifest.
    ///
    /// # Panics
    /// When there is no package of that name, so that a misspelt check fails.
    pub fn direct(&self, name: &str) -> BTreeSet<String> {
        let (_, package) = self.find(name);
        package
            .uses
            .iter()
            .map(|id| self.packages[id].name.clone())
            .collect()
    }

    /// The names of everything `name` is built from, through whatever path.
    ///
    /// # Panics
    /// As [`Graph::direct`].
    pub fn transitive(&self, name: &str) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut open = vec![self.find(name).0];
        let mut seen = BTreeSet::from([open[0]]);
        while let Some(id) = open.pop() {
            for used in &self.packages[id].uses {
                names.insert(self.packages[used].name.clone());
                if seen.insert(used) {
                    open.push(used);
                }
            }
        }
        names
    }

    fn find(&self, name: &str) -> (&str, &Package) {
        let found = self
            .packages
            .iter()
            .find(|(_, package)| package.name == name);
        let (id, package) = found.unwrap_or_else(|| panic!("there is no package '{name}'"));
        (id, package)
    }
}

/// What cargo says of the workspace, or its complaint.
fn metadata(arguments: &[&str]) -> Result<Value, String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(arguments)
        .current_dir(crate::tree::root())
        .output()
        .expect("cargo runs this test, so it can be run");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("cargo writes JSON"))
}

/// The platform this compiler compiles for, such as `x86_64-unknown-linux-gnu`.
fn host() -> String {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .expect("rustc compiled this test, so it can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc -vV names its host").to_owned()
}

fn is_program(target: &Value) -> bool {
    target["kind"]
        .as_array()
        .is_some_and(|kinds| kinds.contains(&Value::from("bin")))
}

/// Whether some of the edge is a normal or a build dependency.
fn is_built_from(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array();
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"] != "dev"))
}
