//! From a prompt to token ids: the checkpoint's own chat template and tokenizer.

use lowtide_weights::ModelFolder;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{Error, Result};

/// Longest prompt in tokens, template included; what is beyond is cut off, as the reference does.
pub const PROMPT_TOKENS_MAX: usize = 512;

/// Where files keep their chat template when not in a file of its own.
const TEMPLATE_FILE: &str = "tokenizer/chat_template.jinja";

/// Turns prompts into token ids.
pub struct PromptEncoder {
    model: String,
    tokenizer: Tokenizer,
    template: String,
}

/// Bytes a chat template puts around a prompt, without opening the tokenizer.
///
/// # Errors
/// As [`PromptEncoder::open`].
pub fn template_bytes(folder: &ModelFolder) -> Result<usize> {
    let template = template_of(folder)?;
    let text = render(&template, "").map_err(|e| Error::Tokenizer {
        model: folder.name.clone(),
        problem: format!("chat template: {e:#}"),
    })?;
    Ok(text.len())
}

/// The most tokens that `prompt` in a template of `template_bytes` can give: one a byte, where composing characters can
/// make at most three bytes of one that is not ASCII, and a few a tokenizer puts around the whole.
pub fn tokens_max(template_bytes: usize, prompt: &str) -> usize {
    const AROUND: usize = 8;
    const COMPOSED: usize = 3;
    let plain = prompt.bytes().filter(u8::is_ascii).count();
    let bytes = template_bytes + plain + COMPOSED * (prompt.len() - plain);
    (bytes + AROUND).min(PROMPT_TOKENS_MAX)
}

impl PromptEncoder {
    /// Reads `tokenizer/tokenizer.json` and the chat template of a model.
    ///
    /// # Errors
    /// [`Error::Incomplete`] or [`Error::Tokenizer`].
    pub fn open(folder: &ModelFolder) -> Result<PromptEncoder> {
        let model = folder.name.clone();
        let wrong = |problem: String| Error::Tokenizer {
            model: folder.name.clone(),
            problem,
        };
        let missing = |what: &str| Error::Incomplete {
            model: folder.name.clone(),
            what: what.to_owned(),
        };
        let text = folder.read_text("tokenizer/tokenizer.json")?;
        let text = text
            .ok_or_else(|| missing("tokenizer/tokenizer.json is missing; fetch the model again"))?;
        let mut tokenizer = Tokenizer::from_bytes(text.as_bytes())
            .map_err(|e| wrong(format!("tokenizer.json: {e}")))?;
        // Padding and truncation are ours: files sometimes carry the settings of the last training run.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|e| wrong(e.to_string()))?;
        let template = template_of(folder)?;
        Ok(PromptEncoder {
            model,
            tokenizer,
            template,
        })
    }

    /// The token ids of `prompt` as a user's message that awaits its answer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let wrong = |problem: String| Error::Tokenizer {
            model: self.model.clone(),
            problem,
        };
        let text =
            render(&self.template, prompt).map_err(|e| wrong(format!("chat template: {e:#}")))?;
        let encoding = self
            .tokenizer
            .encode(text, true)
            .map_err(|e| wrong(e.to_string()))?;
        let mut ids = encoding.get_ids().to_vec();
        ids.truncate(PROMPT_TOKENS_MAX);
        if ids.is_empty() {
            return Err(wrong("the prompt gives no token at all".to_owned()));
        }
        Ok(ids)
    }
}

/// The chat template of a model.
fn template_of(folder: &ModelFolder) -> Result<String> {
    if let Some(template) = folder.read_text(TEMPLATE_FILE)? {
        return Ok(template);
    }
    template_in_config(folder)?.ok_or_else(|| Error::Incomplete {
        model: folder.name.clone(),
        what: "the chat template is missing (tokenizer/chat_template.jinja)".to_owned(),
    })
}

fn render(template: &str, prompt: &str) -> std::result::Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    // The reference renders with these two, and templates rely on them for their line breaks.
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_template("chat", template)?;
    environment.get_template("chat")?.render(context! {
        messages => [context! { role => "user", content => prompt }],
        add_generation_prompt => true,
        enable_thinking => true,
    })
}

/// The template inside tokenizer_config.json: a text, or a list of named ones.
fn template_in_config(folder: &ModelFolder) -> Result<Option<String>> {
    let Some(text) = folder.read_text("tokenizer/tokenizer_config.json")? else {
        return Ok(None);
    };
    let config: Value = serde_json::from_str(&text).map_err(|e| Error::Tokenizer {
        model: folder.name.clone(),
        problem: format!("tokenizer_config.json: {e}"),
    })?;
    Ok(match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => {
            let default = named
                .iter()
                .find(|entry| entry["name"] == "default")
                .or(named.first());
            default
                .and_then(|entry| entry["template"].as_str())
                .map(str::to_owned)
        }
        _ => None,
    })
}
