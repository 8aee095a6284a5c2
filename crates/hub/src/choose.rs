//! What of a repository a pipeline needs.

mod weights;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Listed, Listing};
use weights::Weights;

/// The most files of one pull.
const FILES_MAX: usize = 4_000;
/// The most components: real pipelines have at most about ten.
const COMPONENTS_MAX: usize = 64;
/// Endings of what a component needs beside its weights.
const CONFIGURATION: [&str; 5] = [".json", ".txt", ".model", ".jinja", ".tiktoken"];
/// Components whose weights nothing here reads.
const WITHOUT_WEIGHTS: [&str; 2] = ["safety_checker", "feature_extractor"];
/// Files at the root that belong to a pipeline.
const ROOT: [&str; 2] = ["model_index.json", "lowtide.json"];
/// How many names a message repeats.
const NAMES_SHOWN: usize = 8;

/// What the user says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `fp16`, for files such as `model.fp16.safetensors`; `None`: the plain ones.
    pub variant: Option<String>,
    /// Patterns of files; where there are any, these and nothing else.
    pub include: Vec<String>,
}

/// What is to be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The files, each once.
    pub files: Vec<Listed>,
    /// What is not as asked for, in sentences.
    pub notes: Vec<String>,
}

/// Picks the files that a pipeline needs: `index` is the content of its `model_index.json`, if it has one.
///
/// # Errors
/// A sentence: nothing fits, or a path that would be needed is refused.
pub fn choose(listing: &Listing, index: Option<&Value>, choice: &Choice) -> Result<Chosen, String> {
    let chosen = match (choice.include.is_empty(), index) {
        (false, _) => included(listing, &choice.include)?,
        (true, Some(index)) => pipeline(listing, index, choice.variant.as_deref())?,
        (true, None) => plain(listing, choice.variant.as_deref())?,
    };
    if chosen.files.len() > FILES_MAX {
        let count = chosen.files.len();
        return Err(format!(
            "{count} files would be fetched; the limit is {FILES_MAX}: name fewer with --include"
        ));
    }
    let folders: BTreeSet<String> = chosen
        .files
        .iter()
        .flat_map(|file| {
            let path = file.path.folded();
            let ends = path.match_indices('/').map(|(at, _)| path[..at].to_owned());
            ends.collect::<Vec<_>>()
        })
        .collect();
    match chosen
        .files
        .iter()
        .find(|file| folders.contains(&file.path.folded()))
    {
        Some(both) => Err(format!("'{}' is a file and a folder at once", both.path)),
        None => Ok(chosen),
    }
}

fn included(listing: &Listing, patterns: &[String]) -> Result<Chosen, String> {
    let wanted = |path: &str| patterns.iter().any(|pattern| matches(pattern, path));
    refuse(listing, wanted)?;
    let files = listing
        .files
        .iter()
        .filter(|file| wanted(file.path.as_str()));
    let files: Vec<Listed> = files.cloned().collect();
    match files.is_empty() {
        true => Err(format!(
            "none of its files is like {}; it has {}",
            patterns.join(" or "),
            some_names(listing.files.iter().map(|file| file.path.as_str()))
        )),
        false => Ok(Chosen {
            files,
            notes: Vec::new(),
        }),
    }
}

/// A refused path that would be needed is the end.
fn refuse(listing: &Listing, wanted: impl Fn(&str) -> bool) -> Result<(), String> {
    match listing.refused.iter().find(|(path, _)| wanted(path)) {
        Some((path, why)) => Err(format!(
            "it has a file '{}', which is refused: {why}; nothing of it was fetched",
            crate::error::shown(path)
        )),
        None => Ok(()),
    }
}

fn pipeline(listing: &Listing, index: &Value, variant: Option<&str>) -> Result<Chosen, String> {
    let index = index
        .as_object()
        .ok_or("its model_index.json is not an object")?;
    let is_pair = |value: &Value| {
        let pair = value.as_array().filter(|pair| pair.len() == 2);
        pair.is_some_and(|pair| pair.iter().all(Value::is_string))
    };
    let components: Vec<&str> = index
        .iter()
        .filter(|(name, value)| !name.starts_with('_') && is_pair(value))
        .map(|(name, _)| name.as_str())
        .collect();
    if components.is_empty() {
        return Err("its model_index.json names no components".to_owned());
    }
    if components.len() > COMPONENTS_MAX {
        return Err("its model_index.json names more than 64 components".to_owned());
    }
    let mut chosen = Chosen::default();
    let root = listing
        .files
        .iter()
        .filter(|file| file.path.folder().is_empty());
    chosen
        .files
        .extend(root.filter(|file| is_root(file.path.name())).cloned());
    for name in components {
        let prefix = format!("{name}/");
        refuse(listing, |path| path.starts_with(&prefix))?;
        let inside = listing
            .files
            .iter()
            .filter(|file| file.path.folder() == name);
        let inside: Vec<&Listed> = inside.collect();
        let without = WITHOUT_WEIGHTS.contains(&name);
        if inside.is_empty() {
            if !without {
                return Err(format!(
                    "its model_index.json names '{name}', but there are no files of it"
                ));
            }
            continue;
        }
        chosen.files.extend(configuration(&inside));
        if !without {
            weights(&mut chosen, name, &inside, variant)?;
        }
    }
    Ok(chosen)
}

fn is_root(name: &str) -> bool {
    ROOT.contains(&name) || name.to_ascii_uppercase().starts_with("LICEN")
}

fn configuration<'a>(inside: &'a [&'a Listed]) -> impl Iterator<Item = Listed> + 'a {
    let small = |file: &&&Listed| {
        let name = file.path.name();
        CONFIGURATION.iter().any(|ending| name.ends_with(ending)) && !weights::is_index(name)
    };
    inside.iter().filter(small).map(|file| (*file).clone())
}

/// Adds the one set of weights of a component that is read.
fn weights(
    chosen: &mut Chosen,
    component: &str,
    inside: &[&Listed],
    variant: Option<&str>,
) -> Result<(), String> {
    let found = Weights::among(inside);
    if found.is_empty() {
        return Ok(());
    }
    let picked = found.pick(variant).ok_or_else(|| {
        let names = inside.iter().map(|file| file.path.name());
        format!(
            "'{component}' has no weights in safetensors; it has {}",
            some_names(names)
        )
    })?;
    let asked = variant.unwrap_or_default();
    if picked.variant != asked {
        chosen.notes.push(match (asked, picked.variant.as_str()) {
            ("", other) => format!("{component}: there is only the variant '{other}'; it is taken"),
            (asked, "") => {
                format!("{component}: there is no variant '{asked}'; the plain one is taken")
            }
            (asked, other) => {
                format!("{component}: there is no variant '{asked}'; '{other}' is taken")
            }
        });
    }
    if picked.pickled {
        chosen.notes.push(format!(
            "{component}: there are no safetensors; PyTorch pickles are taken"
        ));
    }
    let files = inside
        .iter()
        .filter(|file| picked.files.contains(file.path.name()));
    chosen.files.extend(files.map(|file| (*file).clone()));
    Ok(())
}

/// A repository that is no pipeline: one component, or one file.
fn plain(listing: &Listing, variant: Option<&str>) -> Result<Chosen, String> {
    let root = listing
        .files
        .iter()
        .filter(|file| file.path.folder().is_empty());
    let root: Vec<&Listed> = root.collect();
    refuse(listing, |path| !path.contains(['/', '\\']))?;
    let mut chosen = Chosen::default();
    if !Weights::among(&root).is_empty() {
        weights(&mut chosen, "it", &root, variant)?;
        chosen.files.extend(configuration(&root));
        return Ok(chosen);
    }
    let single: Vec<&&Listed> = root
        .iter()
        .filter(|file| file.path.name().ends_with(".safetensors"))
        .collect();
    match single[..] {
        [one] => {
            chosen.files.push((*one).clone());
            Ok(chosen)
        }
        [] => Err(format!(
            "it is no pipeline (it has no model_index.json) and has no safetensors; name files with --include: it has {}",
            some_names(listing.files.iter().map(|file| file.path.as_str()))
        )),
        _ => Err(format!(
            "it is no pipeline but has several files; name one with --include: {}",
            some_names(single.iter().map(|file| file.path.as_str()))
        )),
    }
}

fn some_names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let all: Vec<&str> = names.collect();
    let mut some: Vec<&str> = all.iter().take(NAMES_SHOWN).copied().collect();
    if all.len() > NAMES_SHOWN {
        some.push("…");
    }
    some.join(", ")
}

/// Whether a path is like a pattern: `*` is anything, slashes included, `?` one character; a folder means what is in it.
pub fn matches(pattern: &str, path: &str) -> bool {
    let folder = pattern
        .strip_suffix('/')
        .map(|folder| format!("{folder}/*"));
    let pattern: Vec<char> = folder.as_deref().unwrap_or(pattern).chars().collect();
    let path: Vec<char> = path.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how far it reaches so far.
    let mut star: Option<(usize, usize)> = None;
    while t < path.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == path[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, reach)) => {
                    star = Some((at, reach + 1));
                    p = at + 1;
                    t = reach + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests;
