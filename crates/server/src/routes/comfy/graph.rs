//! Graphs of nodes, read backwards from what they save: which model draws which texts, from what, and how. Nodes beyond
//! the common text-to-image and image-to-image graphs are refused by name.

use serde_json::{Map, Value, json};

/// Nodes of a graph, at most.
const NODES_MAX: usize = 256;

/// Nodes one may walk from the end to the beginning; a graph that is longer is a circle.
const DEPTH_MAX: usize = 32;

/// Nodes that take pictures and give none.
const OUTPUTS: [&str; 2] = ["SaveImage", "PreviewImage"];

/// Why a graph cannot be a job.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wrong {
    /// The node, where it is one.
    pub(super) node: Option<String>,
    /// What the web page knows the kind of trouble by.
    pub(super) kind: &'static str,
    /// The sentence.
    pub(super) message: String,
}

type Result<T> = std::result::Result<T, Wrong>;

/// What a graph asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawing {
    /// The model's name, as the graph has it.
    pub(super) model: String,
    /// A request of ours, but for pictures.
    pub(super) request: Map<String, Value>,
    /// The picture to begin from.
    pub(super) image: Option<String>,
    /// What is drawn anew of it.
    pub(super) mask: Option<Mask>,
    /// The node that draws; progress is told of it.
    pub(super) sampler: String,
    /// Nodes that save or show the pictures.
    pub(super) outputs: Vec<String>,
}

/// Where a mask comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Mask {
    /// The picture's name.
    pub(super) picture: String,
    /// Whether it is how much can be seen through it; else how bright it is.
    pub(super) of_alpha: bool,
    /// Whether bright and dark are exchanged.
    pub(super) inverted: bool,
}

/// A graph as clients send it.
struct Graph<'a> {
    nodes: &'a Map<String, Value>,
}

/// One node of it.
#[derive(Clone, Copy)]
struct Node<'a> {
    id: &'a str,
    class: &'a str,
    inputs: &'a Map<String, Value>,
}

fn wrong(node: Option<&str>, kind: &'static str, message: impl Into<String>) -> Wrong {
    Wrong {
        node: node.map(str::to_owned),
        kind,
        message: message.into(),
    }
}

/// At most so much of what a client sent is said again.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Reads a graph.
///
/// # Errors
/// Which node is wrong, and how.
pub(super) fn read(prompt: &Value) -> Result<Drawing> {
    let nodes = prompt.as_object().filter(|nodes| !nodes.is_empty());
    let nodes = nodes.ok_or_else(|| wrong(None, "no_prompt", "no graph of nodes was sent"))?;
    if nodes.len() > NODES_MAX {
        let message = format!("{} nodes are more than {NODES_MAX}", nodes.len());
        return Err(wrong(None, "invalid_prompt", message));
    }
    let graph = Graph { nodes };
    let mut outputs = Vec::new();
    for id in nodes.keys() {
        let node = graph.node(id)?;
        if OUTPUTS.contains(&node.class) {
            outputs.push(node);
        }
    }
    let Some(first) = outputs.first() else {
        let message = "nothing is saved: a SaveImage or PreviewImage node is needed";
        return Err(wrong(None, "prompt_no_outputs", message));
    };
    let decoded = graph.linked(*first, "images")?;
    for other in &outputs[1..] {
        if graph.linked(*other, "images")?.id != decoded.id {
            let message = "two nodes save different pictures: send them as two prompts";
            return Err(wrong(Some(other.id), "invalid_prompt", message));
        }
    }
    if !["VAEDecode", "VAEDecodeTiled"].contains(&decoded.class) {
        return Err(unsupported(decoded));
    }
    let sampler = graph.linked(decoded, "samples")?;
    let mut drawing = graph.sampled(sampler, 0)?;
    drawing.outputs = outputs.iter().map(|node| node.id.to_owned()).collect();
    Ok(drawing)
}

fn unsupported(node: Node<'_>) -> Wrong {
    let message = format!(
        "nodes of the class '{}' are not supported here",
        shown(node.class)
    );
    wrong(Some(node.id), "invalid_prompt", message)
}

impl<'a> Node<'a> {
    fn missing(self, name: &str, what: &str) -> Wrong {
        let class = shown(self.class);
        let message = format!("{class}: {name}: {what} is needed");
        wrong(Some(self.id), "required_input_missing", message)
    }

    fn number(self, name: &str) -> Result<f64> {
        let number = self.inputs.get(name).and_then(Value::as_f64);
        number.ok_or_else(|| self.missing(name, "a number"))
    }

    fn whole(self, name: &str) -> Result<u64> {
        let number = self.inputs.get(name);
        let whole = number.and_then(|value| {
            let float = value
                .as_f64()
                .filter(|float| float.fract() == 0.0 && *float >= 0.0);
            value.as_u64().or(float.map(|float| float as u64))
        });
        whole.ok_or_else(|| self.missing(name, "a whole number"))
    }

    fn text(self, name: &str) -> Result<&'a str> {
        let text = self.inputs.get(name).and_then(Value::as_str);
        text.ok_or_else(|| self.missing(name, "a text"))
    }
}

impl<'a> Graph<'a> {
    fn node(&self, id: &str) -> Result<Node<'a>> {
        let found = self.nodes.get_key_value(id);
        let Some((id, node)) = found else {
            let message = format!("a node is linked that is not there: '{}'", shown(id));
            return Err(wrong(None, "invalid_prompt", message));
        };
        let class = node["class_type"].as_str();
        let class = class
            .ok_or_else(|| wrong(Some(id), "missing_node_type", "the node has no class_type"))?;
        let inputs = node["inputs"].as_object();
        let inputs =
            inputs.ok_or_else(|| wrong(Some(id), "invalid_prompt", "the node has no inputs"))?;
        Ok(Node { id, class, inputs })
    }

    /// The node whose output an input is.
    fn linked(&self, node: Node<'a>, name: &str) -> Result<Node<'a>> {
        Ok(self.linked_output(node, name)?.0)
    }

    /// The same, with which of its outputs.
    fn linked_output(&self, node: Node<'a>, name: &str) -> Result<(Node<'a>, u64)> {
        let link = node.inputs.get(name).and_then(Value::as_array);
        let link = link.filter(|link| link.len() == 2);
        let of = link.and_then(|link| Some((id_of(&link[0])?, link[1].as_u64()?)));
        let (id, output) = of.ok_or_else(|| node.missing(name, "a link to another node"))?;
        Ok((self.node(&id)?, output))
    }

    /// What a sampler draws; with a second one before it that is a second pass.
    fn sampled(&self, sampler: Node<'a>, depth: usize) -> Result<Drawing> {
        if sampler.class != "KSampler" {
            return Err(unsupported(sampler));
        }
        let (model, loras) = self.model(self.linked(sampler, "model")?)?;
        let (prompt, clip_skip) = self.text_of(self.linked(sampler, "positive")?)?;
        let (negative, _) = self.text_of(self.linked(sampler, "negative")?)?;
        let denoise = sampler.number("denoise").unwrap_or(1.0);
        if !(0.0..=1.0).contains(&denoise) || denoise == 0.0 {
            return Err(sampler.missing("denoise", "a number above 0, at most 1"));
        }
        let cfg = sampler.number("cfg")?;
        let mut request = Map::new();
        let mut put = |name: &str, value: Value| request.insert(name.to_owned(), value);
        put("prompt", json!(prompt));
        if !negative.is_empty() {
            put("negative", json!(negative));
        }
        put("seed", json!(sampler.whole("seed")?));
        put("sampler", json!(sampler.text("sampler_name")?));
        put("schedule", json!(sampler.text("scheduler")?));
        // There 1 is no guidance at all.
        put("guidance", json!(if cfg <= 1.0 { 0.0 } else { cfg }));
        put("noise", json!("cpu"));
        if clip_skip > 0 {
            put("clip_skip", json!(clip_skip));
        }
        if !loras.is_empty() {
            put("loras", json!(loras));
        }
        let steps = sampler.whole("steps")?;
        let begins = self.linked(sampler, "latent_image")?;
        let drawing = Drawing {
            model,
            request,
            image: None,
            mask: None,
            sampler: sampler.id.to_owned(),
            outputs: Vec::new(),
        };
        self.begun(begins, drawing, (steps, denoise), depth)
    }

    /// Adds what a drawing begins from.
    fn begun(
        &self,
        latent: Node<'a>,
        mut drawing: Drawing,
        (steps, denoise): (u64, f64),
        depth: usize,
    ) -> Result<Drawing> {
        if depth > DEPTH_MAX {
            return Err(wrong(
                Some(latent.id),
                "invalid_prompt",
                "the graph is too deep, or a circle",
            ));
        }
        match latent.class {
            "EmptyLatentImage" | "EmptySD3LatentImage" => {
                if denoise < 1.0 {
                    let message = "denoise below 1 needs a picture to begin from";
                    return Err(wrong(Some(&drawing.sampler), "invalid_prompt", message));
                }
                for name in ["width", "height"] {
                    drawing
                        .request
                        .insert(name.to_owned(), json!(latent.whole(name)?));
                }
                drawing.request.insert("steps".to_owned(), json!(steps));
                let count = latent.whole("batch_size").unwrap_or(1);
                if count > 1 {
                    drawing.request.insert("count".to_owned(), json!(count));
                }
                Ok(drawing)
            }
            "VAEEncode" | "VAEEncodeForInpaint" => {
                let (total, strength) = whole_way(steps, denoise);
                drawing.request.insert("steps".to_owned(), json!(total));
                drawing
                    .request
                    .insert("strength".to_owned(), json!(strength));
                drawing.image = Some(self.loaded(self.linked(latent, "pixels")?)?);
                if latent.class == "VAEEncodeForInpaint" {
                    drawing.mask = Some(self.mask(latent, "mask", 0)?);
                }
                Ok(drawing)
            }
            "SetLatentNoiseMask" => {
                let mask = self.mask(latent, "mask", 0)?;
                let samples = self.linked(latent, "samples")?;
                drawing = self.begun(samples, drawing, (steps, denoise), depth + 1)?;
                if drawing.image.is_none() {
                    let message = "a mask needs a picture to begin from: link a VAEEncode";
                    return Err(wrong(Some(latent.id), "invalid_prompt", message));
                }
                drawing.mask = Some(mask);
                Ok(drawing)
            }
            "RepeatLatentBatch" => {
                let count = latent.whole("amount")?;
                let samples = self.linked(latent, "samples")?;
                drawing = self.begun(samples, drawing, (steps, denoise), depth + 1)?;
                drawing.request.insert("count".to_owned(), json!(count));
                Ok(drawing)
            }
            "LatentUpscaleBy" | "LatentUpscale" => {
                let first = self.sampled(self.linked(latent, "samples")?, depth + 1)?;
                second_pass(latent, first, drawing, (steps, denoise))
            }
            _ => Err(unsupported(latent)),
        }
    }

    /// The checkpoint's name, and the LoRAs on the way from it.
    fn model(&self, mut node: Node<'a>) -> Result<(String, Vec<Value>)> {
        let mut loras = Vec::new();
        for _ in 0..DEPTH_MAX {
            match node.class {
                "CheckpointLoaderSimple" => {
                    loras.reverse();
                    return Ok((node.text("ckpt_name")?.to_owned(), loras));
                }
                "LoraLoader" | "LoraLoaderModelOnly" => {
                    let strength = node.number("strength_model")?;
                    let of_text = match node.class {
                        "LoraLoader" => node.number("strength_clip")?,
                        _ => 0.0,
                    };
                    let mut lora =
                        json!({ "name": lora_name(node.text("lora_name")?), "strength": strength });
                    if of_text != strength {
                        lora["text_strength"] = json!(of_text);
                    }
                    loras.push(lora);
                    node = self.linked(node, "model")?;
                }
                _ => return Err(unsupported(node)),
            }
        }
        Err(wrong(
            Some(node.id),
            "invalid_prompt",
            "the graph is too deep, or a circle",
        ))
    }

    /// A prompt, and how many layers of its encoder are left out.
    fn text_of(&self, node: Node<'a>) -> Result<(&'a str, u64)> {
        match node.class {
            "CLIPTextEncode" => {
                let mut clip = self.linked(node, "clip")?;
                let mut skipped = 0;
                for _ in 0..DEPTH_MAX {
                    match clip.class {
                        "CheckpointLoaderSimple" => return Ok((node.text("text")?, skipped)),
                        "LoraLoader" => {}
                        "CLIPSetLastLayer" => {
                            let stop = clip.number("stop_at_clip_layer")?;
                            if !(-24.0..=-1.0).contains(&stop) {
                                return Err(clip.missing(
                                    "stop_at_clip_layer",
                                    "a whole number from -24 to -1",
                                ));
                            }
                            skipped = (-stop) as u64 - 1;
                        }
                        _ => return Err(unsupported(clip)),
                    }
                    clip = self.linked(clip, "clip")?;
                }
                Err(wrong(
                    Some(clip.id),
                    "invalid_prompt",
                    "the graph is too deep, or a circle",
                ))
            }
            "ConditioningZeroOut" => Ok(("", 0)),
            _ => Err(unsupported(node)),
        }
    }

    /// The name of a picture that a node reads.
    fn loaded(&self, node: Node<'a>) -> Result<String> {
        match node.class {
            "LoadImage" => Ok(node.text("image")?.to_owned()),
            _ => Err(unsupported(node)),
        }
    }

    fn mask(&self, node: Node<'a>, name: &str, depth: usize) -> Result<Mask> {
        if depth > DEPTH_MAX {
            return Err(wrong(
                Some(node.id),
                "invalid_prompt",
                "the graph is too deep, or a circle",
            ));
        }
        let (source, output) = self.linked_output(node, name)?;
        let of = |picture: &str, of_alpha| Mask {
            picture: picture.to_owned(),
            of_alpha,
            inverted: false,
        };
        match (source.class, output) {
            ("LoadImage", 1) => Ok(of(source.text("image")?, true)),
            ("LoadImageMask", _) => {
                let alpha = source.text("channel")? == "alpha";
                Ok(of(source.text("image")?, alpha))
            }
            ("ImageToMask", _) => Ok(of(&self.loaded(self.linked(source, "image")?)?, false)),
            ("InvertMask", _) => {
                let mask = self.mask(source, "mask", depth + 1)?;
                let inverted = !mask.inverted;
                Ok(Mask { inverted, ..mask })
            }
            _ => Err(unsupported(source)),
        }
    }
}

/// Ids are texts, and numbers in what some programs write.
fn id_of(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// LoRAs are named without the ending of their files here.
fn lora_name(file: &str) -> &str {
    let slashed = file.trim_start_matches('/');
    slashed.strip_suffix(".safetensors").unwrap_or(slashed)
}

/// All steps of a schedule of which the last `steps` are done, and their share. There `steps` are those that are done, here
/// all.
fn whole_way(steps: u64, denoise: f64) -> (u64, f64) {
    let total = (steps as f64 / denoise) as u64;
    // Rounding may cost a step.
    let total = match (total as f64 * denoise) as u64 >= steps {
        true => total,
        false => total + 1,
    };
    (total.max(1), denoise)
}

/// Two samplers with a larger latent between them: a job with a second pass, where they agree in everything else.
fn second_pass(
    latent: Node<'_>,
    mut first: Drawing,
    second: Drawing,
    (steps, denoise): (u64, f64),
) -> Result<Drawing> {
    let invalid = |message: &str| Err(wrong(Some(latent.id), "invalid_prompt", message));
    if first.request.contains_key("hires_scale") {
        return invalid("there may be one second pass");
    }
    for name in [
        "prompt",
        "negative",
        "sampler",
        "schedule",
        "guidance",
        "loras",
        "clip_skip",
    ] {
        if first.request.get(name) != second.request.get(name) {
            let message = format!("both passes need the same {name} here");
            return invalid(&message);
        }
    }
    if first.model != second.model {
        return invalid("both passes need the same checkpoint here");
    }
    let scale = match latent.class {
        "LatentUpscaleBy" => latent.number("scale_by")?,
        _ => {
            let (width, height) = (latent.number("width")?, latent.number("height")?);
            let side = |name: &str| first.request.get(name).and_then(Value::as_f64);
            match (side("width"), side("height")) {
                (Some(w), Some(h)) if (width / w - height / h).abs() < 1e-3 => width / w,
                _ => return invalid("the second pass needs the proportions of the first"),
            }
        }
    };
    let upscaler = match latent.text("upscale_method")? {
        "nearest-exact" => "latent-nearest",
        "bilinear" => "latent",
        _ => return invalid("upscale_method: nearest-exact or bilinear is needed"),
    };
    if scale <= 1.0 {
        return invalid("the second pass has to be larger than the first");
    }
    let (total, strength) = whole_way(steps, denoise);
    let mut put = |name: &str, value: Value| first.request.insert(name.to_owned(), value);
    put("hires_scale", json!(scale));
    put("hires_steps", json!(total));
    put("hires_strength", json!(strength));
    put("hires_upscaler", json!(upscaler));
    first.sampler = second.sampler;
    Ok(first)
}

#[cfg(test)]
mod tests;
