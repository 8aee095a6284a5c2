//! The panel's files without a browser: words in four languages, and nothing its content policy would refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

fn panel() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/panel")
}

fn words(language: &str) -> Map<String, Value> {
    let file = panel().join(format!("words/{language}.json"));
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// The forms of a word, by plural category; `other` where there is one form.
fn forms(word: &Value) -> BTreeMap<String, String> {
    match word {
        Value::String(text) => BTreeMap::from([("other".to_owned(), text.clone())]),
        Value::Object(forms) => forms
            .iter()
            .map(|(category, text)| (category.clone(), text.as_str().unwrap().to_owned()))
            .collect(),
        other => panic!("{other} is no word"),
    }
}

fn placeholders(text: &str) -> BTreeSet<&str> {
    text.split('{')
        .skip(1)
        .map(|rest| rest.split_once('}').expect("every { has its }").0)
        .collect()
}

/// Every file of the page, by name.
fn sources() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(panel())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(&path).unwrap())
        })
        .collect()
}

#[test]
fn every_language_has_every_word_with_the_same_values() {
    let english = words("en");
    let plurals: [(&str, &[&str]); 3] = [
        ("zh-Hans", &["other"]),
        ("zh-Hant", &["other"]),
        ("ru", &["few", "many", "one", "other"]),
    ];
    for (language, categories) in plurals {
        let translated = words(language);
        assert_eq!(
            translated.keys().collect::<Vec<_>>(),
            english.keys().collect::<Vec<_>>(),
            "the keys of {language}"
        );
        for (key, word) in &translated {
            let counted = english[key].is_object();
            let found = forms(word);
            if counted {
                let found: Vec<&str> = found.keys().map(String::as_str).collect();
                assert_eq!(found, categories, "{language}: {key}");
            }
            let wanted = forms(&english[key])["other"].clone();
            for text in found.values() {
                assert!(!text.trim().is_empty(), "{language}: {key} is empty");
                assert_eq!(
                    placeholders(text),
                    placeholders(&wanted),
                    "{language}: {key}"
                );
            }
        }
    }
}

#[test]
fn every_word_that_is_named_is_there() {
    let english = words("en");
    let groups: BTreeSet<&str> = english
        .keys()
        .filter_map(|key| Some(key.split_once('.')?.0))
        .collect();
    let mut named = BTreeSet::new();
    for (file, text) in sources() {
        for word in text.split(['"', '\'', '`']) {
            let parts: Vec<&str> = word.split('.').collect();
            let plain = |part: &str| {
                part.bytes()
                    .all(|sign| sign.is_ascii_lowercase() || sign == b'_')
            };
            if let [group, rest] = parts[..]
                && groups.contains(group)
                && !rest.is_empty()
                && !["js", "css", "svg"].contains(&rest)
                && plain(rest)
            {
                assert!(english.contains_key(word), "{file} names {word}");
                named.insert(word.to_owned());
            }
        }
    }
    assert!(named.len() > 100, "only {} words were found", named.len());
}

#[test]
fn the_page_keeps_to_its_content_policy() {
    let forbidden = [
        ("innerHTML", "text must stay text"),
        ("outerHTML", "text must stay text"),
        ("insertAdjacentHTML", "text must stay text"),
        ("document.write", "text must stay text"),
        ("eval(", "no code from text"),
        (" style=", "inline style is refused"),
        ("<style", "inline style is refused"),
        (" onclick=", "inline code is refused"),
        ("javascript:", "inline code is refused"),
        ("https://", "nothing comes from elsewhere"),
        ("//cdn", "nothing comes from elsewhere"),
    ];
    let sources = sources();
    assert!(
        sources.contains_key("index.html") && sources.contains_key("panel.js"),
        "{:?}",
        sources.keys()
    );
    for (file, text) in &sources {
        for (what, why) in forbidden {
            assert!(!text.contains(what), "{file} has '{what}': {why}");
        }
        let outside =
            text.matches("http://").count() - text.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(outside, 0, "{file} names an address elsewhere");
    }
    let page = &sources["index.html"];
    let scripts = page.matches("<script").count();
    assert_eq!(
        scripts,
        page.matches("<script type=\"module\" src=\"panel/").count(),
        "scripts are files"
    );
}
