//! Where the cache is, which hub is asked, and with which token: from the variables that Python's programs read.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The hub that is asked unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";
/// A token file has one line.
const TOKEN_BYTES_MAX: u64 = 4096;
/// Words that switch something on.
const TRUE: [&str; 4] = ["1", "ON", "YES", "TRUE"];

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The text, for a request's header.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where the cache is and how the hub is asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder with `models--…` in it.
    pub cache: PathBuf,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Sent to that address and no other.
    pub token: Option<Token>,
    /// Whether nothing may be asked of the network.
    pub offline: bool,
    /// Whether links may be used in the cache; otherwise files are moved or copied.
    pub symlinks: bool,
    /// Certificates to trust instead of the public ones: a PEM file.
    pub certificates: Option<PathBuf>,
}

impl Settings {
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`,
    /// `HF_HUB_DISABLE_SYMLINKS`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `SSL_CERT_FILE`, and their older names. `variable`
    /// gives the value of one; an empty one counts as unset.
    ///
    /// # Errors
    /// [`Error::Setting`] for an address or a token that cannot be one, or where the user has no folder.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let flag =
            |name: &str| get(name).is_some_and(|value| TRUE.contains(&&*value.to_uppercase()));
        let home = || get("HOME").or_else(|| get("USERPROFILE"));
        let path = |text: String| PathBuf::from(expanded(&text, home(), &get));
        let hf_home = get("HF_HOME")
            .map(path)
            .or_else(|| get("XDG_CACHE_HOME").map(|cache| path(cache).join("huggingface")))
            .or_else(|| home().map(|home| Path::new(&home).join(".cache").join("huggingface")));
        let cache = get("HF_HUB_CACHE")
            .or_else(|| get("HUGGINGFACE_HUB_CACHE"))
            .map(path)
            .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
            .ok_or_else(|| Error::Setting {
                name: "HF_HOME".to_owned(),
                problem: "there is no folder of yours to keep models in; name one".to_owned(),
            })?;
        let token_file = get("HF_TOKEN_PATH")
            .map(path)
            .or_else(|| hf_home.map(|home| home.join("token")));
        let named = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
        let token = match (flag("HF_HUB_DISABLE_IMPLICIT_TOKEN"), named) {
            (true, _) => None,
            (false, Some(text)) => Some(token(&text, "HF_TOKEN")?),
            (false, None) => match token_file.as_deref().and_then(short_text) {
                Some(text) if !text.trim().is_empty() => Some(token(&text, "HF_TOKEN_PATH")?),
                _ => None,
            },
        };
        Ok(Settings {
            cache,
            endpoint: endpoint(&get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()))?,
            token,
            offline: flag("HF_HUB_OFFLINE") || flag("TRANSFORMERS_OFFLINE"),
            symlinks: !flag("HF_HUB_DISABLE_SYMLINKS"),
            certificates: get("SSL_CERT_FILE").map(PathBuf::from),
        })
    }
}

fn endpoint(text: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    match rest {
        Some(rest)
            if !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic() && c != '@') =>
        {
            Ok(text.to_owned())
        }
        _ => Err(Error::Setting {
            name: "HF_ENDPOINT".to_owned(),
            problem: format!("'{text}' is no address of a hub; write one such as {ENDPOINT}"),
        }),
    }
}

fn token(text: &str, name: &str) -> Result<Token> {
    let text = text.trim();
    match text.chars().all(|c| c.is_ascii_graphic()) {
        true => Ok(Token(text.to_owned())),
        // Without the text: it may be a secret with a slip in it.
        false => Err(Error::Setting {
            name: name.to_owned(),
            problem: "this is no token: it has blanks or letters beyond ASCII in it".to_owned(),
        }),
    }
}

/// The text of a file that is there and short.
fn short_text(path: &Path) -> Option<String> {
    let short = path.metadata().ok()?.len() <= TOKEN_BYTES_MAX;
    short.then(|| std::fs::read_to_string(path).ok())?
}

/// With the user's folder for a leading `~`, and `$NAME` and `${NAME}` replaced where they are set, as Python does.
fn expanded(text: &str, home: Option<String>, get: &impl Fn(&str) -> Option<String>) -> String {
    let text = match (text.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', '\\']) => {
            format!("{home}{rest}")
        }
        _ => text.to_owned(),
    };
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (name, end) = match after
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'))
        {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after
                    .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                    .unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match get(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[at..at + 1 + end]),
        }
        rest = &after[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_python_looks() {
        for (variables, cache) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (&[("HOME", "/h"), ("HF_HOME", "~/models")], "/h/models/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "$HOME/m")], "/h/m/hub"),
            (&[("HF_HOME", "/m"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/m")], "/m/hub"),
            (&[("A", "a"), ("HF_HUB_CACHE", "/${A}/$B/$A")], "/a/$B/a"),
        ] {
            assert_eq!(settings(variables).unwrap().cache, Path::new(cache));
        }
        assert!(settings(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn a_token_comes_from_the_variable_else_from_the_file_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        assert_eq!(settings(&[("HF_HOME", home)]).unwrap().token, None);
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        let from_file = settings(&[("HF_HOME", home)]).unwrap();
        assert_eq!(from_file.token.as_ref().unwrap().reveal(), "hf_file");
        assert!(!format!("{from_file:?}").contains("hf_file"));
        let named = settings(&[("HF_HOME", home), ("HF_TOKEN", "hf_named")]).unwrap();
        assert_eq!(named.token.unwrap().reveal(), "hf_named");
        let wrong = settings(&[("HF_HOME", home), ("HF_TOKEN", "hf se cret")]).unwrap_err();
        assert!(!wrong.to_string().contains("cret"), "{wrong}");
        let off = [("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(settings(&off).unwrap().token, None);
    }

    #[test]
    fn mirrors_and_switches() {
        let base = ("HF_HOME", "/m");
        let mirror = settings(&[base, ("HF_ENDPOINT", "http://mirror:80/hf/")]).unwrap();
        assert_eq!(mirror.endpoint, "http://mirror:80/hf");
        assert!(!mirror.offline && mirror.symlinks);
        for wrong in [
            "mirror",
            "ftp://mirror",
            "https://",
            "https://me:pass@mirror",
        ] {
            assert!(
                settings(&[base, ("HF_ENDPOINT", wrong)]).is_err(),
                "{wrong}"
            );
        }
        let off = settings(&[
            base,
            ("HF_HUB_OFFLINE", "yes"),
            ("HF_HUB_DISABLE_SYMLINKS", "1"),
        ]);
        let off = off.unwrap();
        assert!(off.offline && !off.symlinks);
        assert!(!settings(&[base, ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }
}
