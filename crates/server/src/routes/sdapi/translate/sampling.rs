//! Sizes, seeds, steps and samplers.

use serde_json::{Map, Value, json};

use crate::fields::{Fields, wrong};
use crate::refusal::Refusal;

/// Names of schedules that mean one of another name here.
const SCHEDULES: [(&str, &str); 2] = [("uniform", "normal"), ("sgm uniform", "sgm_uniform")];

/// Numbers that mean the same here.
pub(super) fn plain(fields: &mut Fields, request: &mut Map<String, Value>) -> Result<(), Refusal> {
    for side in ["width", "height"] {
        if let Some(pixels) = fields.whole(side, 1..=u64::from(u32::MAX))? {
            request.insert(side.to_owned(), json!(pixels));
        }
    }
    if let Some(steps) = fields.whole("steps", 1..=u64::from(u32::MAX))? {
        request.insert("steps".to_owned(), json!(steps));
    }
    // There 1 is no guidance at all, and so is whatever is below.
    if let Some(scale) = fields.number("cfg_scale", 0.0..=1_000.0)? {
        let guidance = if scale <= 1.0 { 0.0 } else { scale };
        request.insert("guidance".to_owned(), json!(guidance));
    }
    match fields.take("seed") {
        None => {}
        Some(seed) if seed.as_i64() == Some(-1) || seed.as_f64() == Some(-1.0) => {}
        Some(seed) => match seed.as_u64() {
            Some(seed) => {
                request.insert("seed".to_owned(), json!(seed));
            }
            None => return Err(wrong("seed", "a whole number, or -1 for any", &seed)),
        },
    }
    let batch = fields.whole("batch_size", 1..=256)?.unwrap_or(1);
    let rounds = fields.whole("n_iter", 1..=256)?.unwrap_or(1);
    if batch * rounds > 1 {
        request.insert("count".to_owned(), json!(batch * rounds));
    }
    Ok(())
}

pub(super) fn sampling(
    fields: &mut Fields,
    request: &mut Map<String, Value>,
    notes: &mut Vec<String>,
) -> Result<(), Refusal> {
    let index = fields.text("sampler_index")?;
    let sampler = fields.text("sampler_name")?.or(index);
    let sampler = sampler.filter(|name| !name.is_empty());
    let schedule = fields.text("scheduler")?;
    let schedule =
        schedule.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("automatic"));
    let (sampler, within) = match sampler {
        None => (None, None),
        Some(name) => split_schedule(name),
    };
    let eta = fields.number("eta", 0.0..=1.0)?;
    if let Some(eta) = eta {
        let ddim = sampler
            .as_deref()
            .is_some_and(|name| name.eq_ignore_ascii_case("ddim"));
        match ddim {
            true => {
                request.insert("eta".to_owned(), json!(eta));
            }
            // 1 is what samplers with fresh noise have anyway, and the others have none.
            false if eta == 1.0 => {}
            false => notes.push("eta has an effect with DDIM alone".to_owned()),
        }
    }
    if let Some(sampler) = sampler {
        request.insert("sampler".to_owned(), json!(sampler));
    }
    if let Some(schedule) = schedule.or(within) {
        let lower = schedule.to_lowercase();
        let same = SCHEDULES.iter().find(|(theirs, _)| *theirs == lower);
        request.insert(
            "schedule".to_owned(),
            json!(same.map_or(lower.as_str(), |(_, ours)| ours)),
        );
    }
    Ok(())
}

/// Older clients write both in one, as `DPM++ 2M Karras`.
pub(super) fn split_schedule(name: String) -> (Option<String>, Option<String>) {
    for schedule in ["Karras", "Exponential"] {
        if let Some(sampler) = name.strip_suffix(schedule) {
            return (
                Some(sampler.trim_end().to_owned()),
                Some(schedule.to_owned()),
            );
        }
    }
    (Some(name), None)
}

/// Another model that goes the rest of the way; their clients name "None" for none, and 0 or 1 for never.
pub(super) fn refiner(
    fields: &mut Fields,
    request: &mut Map<String, Value>,
) -> Result<(), Refusal> {
    let model = fields.text("refiner_checkpoint")?;
    let at = fields.number("refiner_switch_at", 0.0..=1.0)?;
    let model = model.filter(|model| !model.is_empty() && model != "None");
    if let (Some(model), false) = (model, at.is_some_and(|at| at == 0.0 || at == 1.0)) {
        request.insert("refiner".to_owned(), json!(model));
        request.insert("refiner_start".to_owned(), json!(at));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_names_hold_the_schedule() {
        let split = |name: &str| split_schedule(name.to_owned());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(split("DPM++ 2M Karras"), (some("DPM++ 2M"), some("Karras")));
        assert_eq!(
            split("DPM++ 2M SDE Exponential"),
            (some("DPM++ 2M SDE"), some("Exponential"))
        );
        assert_eq!(split("Euler a"), (some("Euler a"), None));
    }
}
