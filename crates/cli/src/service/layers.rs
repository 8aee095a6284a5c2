//! Settings from several places, the later ones winning; each value remembers where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::keys::{self, Found, KEYS, Key};
use super::value::Kind;
use crate::failure::{Failure, one_line};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody said anything.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// An argument.
    Argument(String),
    /// The process that started this one.
    Parent,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Variable(name) => f.write_str(name),
            Origin::Argument(name) => f.write_str(name),
            Origin::Parent => f.write_str("lowtide serve"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Given {
    /// As [`Kind::read`] gives it.
    pub(crate) value: Value,
    /// Who said it.
    pub(crate) origin: Origin,
}

/// The parts of a setting's place.
pub(crate) type Place = Vec<String>;

/// Everything that is set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resolved {
    values: BTreeMap<Place, Given>,
}

/// Names of variables people have already, the setting each means, and the unit its number has.
const FOREIGN: &[(&str, &str, &str)] = &[
    ("GPU_MAX_CONCURRENT_JOBS", "worker.max_concurrent_jobs", ""),
    // What others call MB of graphics memory are mebibytes, in their tools and in the cards' names.
    ("GPU_VRAM_LIMIT", "device.budget", "MiB"),
    ("MODEL_CACHE_DIR", "models.dirs", ""),
    ("GPU_IDLE_TIMEOUT", "worker.idle_timeout", "s"),
    ("PORT", "server.port", ""),
    // Later ones win: what is said of S3 alone is more than what is said of everything of Amazon's.
    ("AWS_DEFAULT_REGION", "server.files_region", ""),
    ("AWS_REGION", "server.files_region", ""),
    ("AWS_ENDPOINT_URL", "server.files_endpoint", ""),
    ("AWS_ENDPOINT_URL_S3", "server.files_endpoint", ""),
    ("LOWTIDE_MODELS", "models.dirs", ""),
    ("LOWTIDE_MODEL_DIRS", "models.programs", ""),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "log.traces", ""),
    (crate::named_files::LORAS_VARIABLE, "models.loras", ""),
    (
        crate::named_files::EMBEDDINGS_VARIABLE,
        "models.embeddings",
        "",
    ),
    (
        crate::named_files::DETECTORS_VARIABLE,
        "models.detectors",
        "",
    ),
];

impl Resolved {
    /// What holds where nobody says anything.
    pub(crate) fn defaults() -> Resolved {
        let mut resolved = Resolved::default();
        for key in KEYS {
            if let Some(default) = key.default {
                let value = key
                    .kind
                    .read(&json!(default), false)
                    .expect("a test reads every default");
                resolved.put(split(key.place), value, &Origin::Default);
            }
        }
        for (preset, field, value) in keys::PRESETS {
            let place = ["presets", preset, field].map(str::to_owned).to_vec();
            resolved.put(place, json!(value), &Origin::Default);
        }
        resolved
    }

    fn put(&mut self, place: Place, value: Value, origin: &Origin) {
        let origin = origin.clone();
        self.values.insert(place, Given { value, origin });
    }

    /// A file's text; the ending tells whether it is TOML or YAML.
    ///
    /// # Errors
    /// What is wrong, with the file's name and the place in it.
    pub(crate) fn file(&mut self, path: &Path, text: &str) -> Result<(), Failure> {
        let document: Value = if is_yaml(path) {
            serde_yaml_ng::from_str(text).map_err(|cause| not_read(path, &cause.to_string()))?
        } else {
            toml::from_str(text).map_err(|cause| not_read(path, &cause.to_string()))?
        };
        match document {
            // An empty YAML file is null.
            Value::Null => Ok(()),
            Value::Object(table) => self.table(
                &Value::Object(table),
                &Origin::File(path.to_owned()),
                &mut Vec::new(),
            ),
            other => Err(not_read(
                path,
                &format!("it is {other}, not a table of settings"),
            )),
        }
    }

    /// Everything that the parent resolved, as [`Resolved::document`] wrote it.
    ///
    /// # Errors
    /// When the two are not of one version.
    pub(crate) fn from_parent(document: &Value) -> Result<Resolved, Failure> {
        let mut resolved = Resolved::defaults();
        resolved.table(document, &Origin::Parent, &mut Vec::new())?;
        Ok(resolved)
    }

    fn table(&mut self, table: &Value, origin: &Origin, place: &mut Place) -> Result<(), Failure> {
        for (name, value) in table.as_object().into_iter().flatten() {
            place.push(name.clone());
            match keys::find(place) {
                Found::Setting(key) => self.setting(key, place.clone(), value, origin)?,
                Found::Table if value.is_object() => self.table(value, origin, place)?,
                Found::Table => {
                    return Err(Failure::mistake(format!(
                        "'{origin}': {} is {value}; it is a table of settings",
                        keys::written(place)
                    )));
                }
                Found::Nothing { nearest, choices } => {
                    let there = nearest.map_or_else(
                        || format!("there are {}", choices.join(", ")),
                        |near| format!("did you mean '{near}'?"),
                    );
                    return Err(Failure::mistake(format!(
                        "'{origin}': {} is no setting; {there}",
                        keys::written(place)
                    )));
                }
            }
            place.pop();
        }
        Ok(())
    }

    fn setting(
        &mut self,
        key: &Key,
        place: Place,
        written: &Value,
        origin: &Origin,
    ) -> Result<(), Failure> {
        let (strict, at) = match origin {
            Origin::File(path) => (
                true,
                format!("'{}': {}", path.display(), keys::written(&place)),
            ),
            Origin::Parent | Origin::Default => (true, keys::written(&place)),
            Origin::Variable(name) => (false, name.clone()),
            Origin::Argument(name) => (false, name.clone()),
        };
        let value = key
            .kind
            .read(written, strict)
            .map_err(|problem| Failure::mistake(format!("{at} {problem}")))?;
        self.put(place, absolute(key.kind, value, origin), origin);
        Ok(())
    }

    /// The environment: names people have already, then our own.
    ///
    /// # Errors
    /// A wrong value, or a name of ours that means nothing.
    pub(crate) fn variables(
        &mut self,
        variables: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        let given = |name: &str| variables.get(name).filter(|text| !text.trim().is_empty());
        for (name, place, unit) in FOREIGN {
            if let Some(text) = given(name) {
                let text = match text.trim().parse::<f64>() {
                    Ok(_) => format!("{}{unit}", text.trim()),
                    Err(_) => text.clone(),
                };
                self.text(place, &text, &Origin::Variable((*name).to_owned()))?;
            }
        }
        let mut known = Vec::new();
        for key in KEYS.iter().filter(|key| !key.is_open()) {
            let name = key.variable();
            if let Some(text) = given(&name) {
                self.text(key.place, text, &Origin::Variable(name.clone()))?;
            }
            known.push(name);
        }
        let sections = KEYS.iter().filter_map(|key| key.parts().next());
        let sections: Vec<String> = sections
            .map(|name| format!("LOWTIDE_{}_", name.to_uppercase()))
            .collect();
        let ours = |name: &&String| sections.iter().any(|section| name.starts_with(section));
        if let Some(name) = variables
            .keys()
            .filter(ours)
            .find(|name| !known.contains(name))
        {
            let near = keys::nearest(name, known.iter().map(String::as_str));
            let there = near.map_or_else(
                || "names chosen by you, as in presets and aliases, come from the file".to_owned(),
                |near| format!("did you mean {near}?"),
            );
            return Err(Failure::mistake(format!("{name} is no setting; {there}")));
        }
        Ok(())
    }

    /// One setting, as text.
    ///
    /// # Errors
    /// A wrong value, or no such setting.
    pub(crate) fn text(&mut self, place: &str, text: &str, origin: &Origin) -> Result<(), Failure> {
        let place = split(place);
        match keys::find(&place) {
            Found::Setting(key) => self.setting(key, place, &json!(text), origin),
            Found::Table | Found::Nothing { .. } => {
                let known = KEYS.iter().map(|key| key.place);
                let near = keys::nearest(&keys::written(&place), known).unwrap_or_default();
                let meant = match near.is_empty() {
                    true => "'lowtide config' shows them all".to_owned(),
                    false => format!("did you mean '{near}'?"),
                };
                Err(Failure::mistake(format!(
                    "{origin}: {} is no setting; {meant}",
                    keys::written(&place)
                )))
            }
        }
    }

    /// The value at a place with no names of the user in it.
    pub(crate) fn get(&self, place: &str) -> Option<&Value> {
        self.given(&split(place)).map(|given| &given.value)
    }

    /// The value at a place and where it came from.
    pub(crate) fn given(&self, place: &[String]) -> Option<&Given> {
        self.values.get(place)
    }

    /// Everything below a table, with the parts of its place that follow.
    pub(crate) fn below<'a>(
        &'a self,
        table: &'a [&'a str],
    ) -> impl Iterator<Item = (&'a [String], &'a Value)> {
        self.values.iter().filter_map(move |(place, given)| {
            let fits = place.len() > table.len() && place.iter().zip(table).all(|(a, b)| a == b);
            fits.then(|| (&place[table.len()..], &given.value))
        })
    }

    /// Every setting: its place, what is set, and where nothing is, what holds then.
    pub(crate) fn all(&self) -> Vec<(Place, &'static Key, Option<&Given>)> {
        let mut all = Vec::new();
        for key in KEYS {
            if !key.is_open() {
                all.push((split(key.place), key, self.given(&split(key.place))));
                continue;
            }
            let count = key.parts().count();
            let set = self.values.iter().filter(|(place, _)| {
                place.len() == count
                    && key
                        .parts()
                        .zip(place.iter())
                        .all(|(part, name)| part == "*" || part == name)
            });
            all.extend(set.map(|(place, given)| (place.clone(), key, Some(given))));
        }
        all
    }

    /// Everything as one document, for the child.
    pub(crate) fn document(&self) -> Value {
        let mut document = Map::new();
        for (place, given) in &self.values {
            let Some((last, tables)) = place.split_last() else {
                continue;
            };
            let mut table = &mut document;
            for name in tables {
                table = table
                    .entry(name.clone())
                    .or_insert_with(|| json!({}))
                    .as_object_mut()
                    .expect("no setting is also a table");
            }
            table.insert(last.clone(), given.value.clone());
        }
        Value::Object(document)
    }
}

fn split(place: &str) -> Place {
    place.split('.').map(str::to_owned).collect()
}

/// Whether a file is YAML by its name.
pub(crate) fn is_yaml(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| {
        ending.eq_ignore_ascii_case("yaml") || ending.eq_ignore_ascii_case("yml")
    })
}

fn not_read(path: &Path, cause: &str) -> Failure {
    Failure::mistake(format!(
        "'{}' cannot be read: {}",
        path.display(),
        one_line(cause)
    ))
}

/// Paths in a file count from its folder, and `~` is the user's.
fn absolute(kind: Kind, value: Value, origin: &Origin) -> Value {
    let base = match origin {
        Origin::File(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
        _ => PathBuf::new(),
    };
    let one = |text: &str| {
        base.join(super::folders::tilde(text))
            .to_string_lossy()
            .into_owned()
    };
    match (kind, &value) {
        (Kind::Path, Value::String(text)) => json!(one(text)),
        (Kind::Paths, Value::Array(items)) => {
            items.iter().filter_map(Value::as_str).map(one).collect()
        }
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    fn from_file(name: &str, text: &str) -> Result<Resolved, Failure> {
        let mut resolved = Resolved::defaults();
        resolved.file(Path::new(name), text)?;
        Ok(resolved)
    }

    #[track_caller]
    fn refused<T: fmt::Debug>(result: Result<T, Failure>, says: &[&str]) {
        let failure = result.unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        for part in says {
            assert!(failure.to_string().contains(part), "{part}: {failure}");
        }
    }

    #[test]
    fn later_places_win_and_are_remembered() {
        let mut resolved = from_file(
            "a/lowtide.toml",
            "[server]\nport = 1\nhost = \"h\"\n[device]\nbudget = \"1GiB\"",
        )
        .unwrap();
        resolved
            .variables(&variables(&[
                ("PORT", "2"),
                ("LOWTIDE_SERVER_HOST", "v"),
                ("GPU_VRAM_LIMIT", "2048"),
            ]))
            .unwrap();
        let argument = Origin::Argument("--port".to_owned());
        resolved.text("server.port", "3", &argument).unwrap();
        let given = |place: &str| resolved.given(&split(place)).unwrap().clone();
        assert_eq!(
            given("server.port"),
            Given {
                value: json!(3),
                origin: argument
            }
        );
        assert_eq!(
            given("server.host").origin.to_string(),
            "LOWTIDE_SERVER_HOST"
        );
        assert_eq!(given("device.budget").value, json!(2_u64 << 30));
        assert_eq!(given("worker.batch_max").origin, Origin::Default);
    }

    #[test]
    fn our_names_win_over_those_people_have_already() {
        let mut resolved = Resolved::defaults();
        let both = [
            ("PORT", "1"),
            ("LOWTIDE_SERVER_PORT", "2"),
            ("GPU_IDLE_TIMEOUT", "60"),
            ("GPU_MAX_CONCURRENT_JOBS", "3"),
        ];
        resolved.variables(&variables(&both)).unwrap();
        assert_eq!(resolved.get("server.port"), Some(&json!(2)));
        assert_eq!(resolved.get("worker.idle_timeout"), Some(&json!(60.0)));
        assert_eq!(resolved.get("worker.max_concurrent_jobs"), Some(&json!(3)));
    }

    #[test]
    fn toml_and_yaml_mean_the_same() {
        let toml = "[models]\ndirs = [\"shelf\", \"/far\"]\n[models.aliases]\n\"sd1.5\" = \"demo\"\n\
                    [models.options.demo]\nkeep_alive = 0\n[presets.fast]\nsteps = 4";
        let yaml = "models:\n  dirs: [shelf, /far]\n  aliases: {sd1.5: demo}\n  options: {demo: {keep_alive: 0}}\n\
                    presets: {fast: {steps: 4}}";
        let toml = from_file("a/lowtide.toml", toml).unwrap().document();
        assert_eq!(toml, from_file("a/lowtide.yaml", yaml).unwrap().document());
        assert_eq!(toml["models"]["dirs"], json!(["a/shelf", "/far"]));
        assert_eq!(toml["models"]["options"]["demo"]["keep_alive"], "0s");
        assert_eq!(
            toml["presets"],
            json!({ "fast": { "steps": 4 }, "standard": { "steps": 30 } })
        );
    }

    #[test]
    fn what_means_nothing_is_refused_with_file_key_and_the_nearest() {
        let file = |text: &str| from_file("lowtide.toml", text);
        refused(
            file("[sever]\nport = 1"),
            &["lowtide.toml", "sever", "'server'"],
        );
        refused(
            file("[server]\nprot = 1"),
            &["lowtide.toml", "server.prot", "'port'"],
        );
        refused(
            file("[server]\nfrobnicate = 1"),
            &["server.frobnicate", "host, port"],
        );
        refused(file("server = 1"), &["server is 1", "table"]);
        refused(
            file("[server]\nport = \"1\""),
            &["server.port", "\"1\"", "whole number"],
        );
        refused(
            file("[device]\nbudget = \"6 potatoes\""),
            &["device.budget", "6 potatoes", "600MiB"],
        );
        refused(file("[presets.fast]\nsteps = [1]"), &["presets.fast.steps"]);
        refused(file("[server"), &["lowtide.toml", "line 1"]);
        refused(
            from_file("lowtide.yaml", "- 1"),
            &["lowtide.yaml", "not a table"],
        );
        refused(from_file("lowtide.yaml", "a: [1"), &["lowtide.yaml"]);
        assert!(from_file("lowtide.yaml", "").is_ok());
    }

    #[test]
    fn variables_and_arguments_are_named_when_they_are_wrong() {
        let set = |list: &[(&str, &str)]| Resolved::defaults().variables(&variables(list));
        refused(
            set(&[("LOWTIDE_SERVER_PROT", "1")]),
            &["LOWTIDE_SERVER_PROT", "LOWTIDE_SERVER_PORT"],
        );
        refused(
            set(&[("LOWTIDE_PRESETS_FAST_STEPS", "1")]),
            &["from the file"],
        );
        refused(
            set(&[("PORT", "http")]),
            &["PORT is \"http\"", "whole number"],
        );
        refused(
            set(&[("GPU_VRAM_LIMIT", "much")]),
            &["GPU_VRAM_LIMIT", "a size"],
        );
        set(&[
            ("LOWTIDE_ISA", "portable"),
            ("LOWTIDE_SERVER", "http://x"),
            ("PORT", " "),
        ])
        .unwrap();
        let origin = Origin::Argument("--set".to_owned());
        refused(
            Resolved::defaults().text("worker.lese", "1s", &origin),
            &["--set", "'worker.lease'"],
        );
    }

    #[test]
    fn the_child_reads_what_the_parent_resolved() {
        let text = "[worker]\nidle_timeout = \"never\"\n[device]\nreserve = \"12.5%\"\nbudget = \"6GiB\"\n\
                    [models.options.\"a.b\"]\nafter_job = \"release\"\n[queue.priority]\nno-op = \"batch\"";
        let parent = from_file("lowtide.toml", text).unwrap();
        let child = Resolved::from_parent(&parent.document()).unwrap();
        assert_eq!(child.document(), parent.document());
        assert_eq!(child.get("device.reserve"), Some(&json!("12.5%")));
    }
}
