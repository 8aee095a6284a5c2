//! A door that knows more kinds of jobs than pictures from text: what the web UI's clients ask for beside those.

use lowtide_core::{Budget, Bytes};
use lowtide_jobs::report::Hints;
use lowtide_server::{Checked, Door, Extra, Kind, ModelEntry, Planned, Refused};
use serde_json::{Value, json};

use super::pretend::PretendDoor;

/// Knows `upscale` with two networks, `detail`, and jobs of several steps.
#[derive(Default)]
pub(crate) struct StudioDoor(PretendDoor);

/// The side of what stands for pictures.
pub(crate) const SIDE: u32 = 100;

fn kind(name: &str, properties: Value) -> Kind {
    Kind {
        name: name.to_owned(),
        about: "Pretends.".to_owned(),
        schema: json!({ "type": "object", "properties": properties, "additionalProperties": false }),
        model_default: None,
    }
}

impl Door for StudioDoor {
    fn kinds(&self) -> Vec<Kind> {
        let picture = json!({ "type": "string", "format": "input-picture" });
        let number = json!({ "type": "number" });
        let format = json!({ "type": "string" });
        let mut kinds = self.0.kinds();
        kinds.extend([
            kind("upscale", json!({ "image": picture, "scale": number, "output_format": format })),
            kind(
                "detail",
                json!({
                    "image": picture, "prompt": format, "passes": { "type": "array" }, "steps": number,
                    "guidance": number, "sampler": format, "schedule": format, "seed": number,
                }),
            ),
            kind("chain", json!({ "steps": { "type": "array", "format": "job-steps" } })),
        ]);
        kinds
    }

    fn models(&self) -> Vec<ModelEntry> {
        let network = |name: &str, scale: u64| ModelEntry {
            name: name.to_owned(),
            aliases: Vec::new(),
            kinds: vec!["upscale".to_owned()],
            bytes: Bytes::mib(1),
            defaults: json!({ "scale": scale }),
        };
        let mut models = self.0.models();
        models[0].kinds.push("detail".to_owned());
        models.extend([
            network("RealESRGAN_x4plus", 4),
            network("mine/2x-sharp.pth", 2),
        ]);
        models
    }

    fn check(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Checked, Refused> {
        if kind == "text-to-image" {
            return self.0.check(kind, model, request, budget);
        }
        // Steps that name no model have their kind's.
        let mut request = request;
        for step in request["steps"].as_array_mut().into_iter().flatten() {
            if step["model"].is_null() {
                step["model"] = json!("demo");
            }
        }
        let hints = Hints {
            seconds: 0.1,
            peak: 1 << 20,
            batch: None,
            steps: Vec::new(),
        };
        Ok(Checked {
            model: model.unwrap_or("demo").to_owned(),
            request,
            hints,
        })
    }

    fn plan(
        &self,
        kind: &str,
        model: Option<&str>,
        request: Value,
        budget: Option<Budget>,
    ) -> Result<Planned, Refused> {
        self.0.plan(kind, model, request, budget)
    }

    fn mask_of(&self, picture: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        self.0.mask_of(picture)
    }

    fn inverted(&self, mask: &[u8]) -> Result<Vec<u8>, Refused> {
        self.0.inverted(mask)
    }

    fn parameters_of(&self, picture: &[u8]) -> Result<Option<String>, Refused> {
        self.0.parameters_of(picture)
    }

    fn size_of(&self, _: &[u8]) -> Result<[u32; 2], Refused> {
        Ok([SIDE, SIDE / 2])
    }

    fn loras(&self) -> Vec<Extra> {
        self.0.loras()
    }

    fn embeddings(&self) -> Vec<Extra> {
        self.0.embeddings()
    }
}
