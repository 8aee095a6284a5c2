//! Reads scheduler_config.json for one class of schedulers: what the file says, else that class's own defaults.
//!
//! A file written for one class is read for another as diffusers' `from_config` does: keys that both know are kept, keys
//! that only the first knows are dropped, and what the file leaves out is the second class's default.

use std::sync::Arc;

use serde_json::Value;

use super::tables::{self, Growth};
use super::{Method, Schedule};
use crate::Result;
use crate::config::ConfigReader;

/// The largest number of training timesteps that is believed.
const TRAIN_STEPS_MAX: usize = 100_000;

/// A class of schedulers in diffusers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Ddim,
    Pndm,
    Euler,
    EulerAncestral,
    Heun,
    DpmMultistep,
    DpmSinglestep,
    DpmSde,
    UniPc,
    Lcm,
    FlowMatchEuler,
}

impl Class {
    pub(super) const ALL: [Class; 11] = [
        Class::Ddim,
        Class::Pndm,
        Class::Euler,
        Class::EulerAncestral,
        Class::Heun,
        Class::DpmMultistep,
        Class::DpmSinglestep,
        Class::DpmSde,
        Class::UniPc,
        Class::Lcm,
        Class::FlowMatchEuler,
    ];

    /// Its name in `_class_name`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Class::Ddim => "DDIMScheduler",
            Class::Pndm => "PNDMScheduler",
            Class::Euler => "EulerDiscreteScheduler",
            Class::EulerAncestral => "EulerAncestralDiscreteScheduler",
            Class::Heun => "HeunDiscreteScheduler",
            Class::DpmMultistep => "DPMSolverMultistepScheduler",
            Class::DpmSinglestep => "DPMSolverSinglestepScheduler",
            Class::DpmSde => "DPMSolverSDEScheduler",
            Class::UniPc => "UniPCMultistepScheduler",
            Class::Lcm => "LCMScheduler",
            Class::FlowMatchEuler => "FlowMatchEulerDiscreteScheduler",
        }
    }

    /// The class that carries out a method.
    pub(super) fn of(method: Method) -> Class {
        match method {
            Method::Ddim => Class::Ddim,
            Method::Pndm => Class::Pndm,
            Method::Euler => Class::Euler,
            Method::EulerAncestral => Class::EulerAncestral,
            Method::Heun => Class::Heun,
            Method::Dpmpp2M | Method::Dpmpp2MSde => Class::DpmMultistep,
            Method::Dpmpp2S => Class::DpmSinglestep,
            Method::DpmppSde => Class::DpmSde,
            Method::UniPc => Class::UniPc,
            Method::Lcm => Class::Lcm,
            Method::FlowMatchEuler => Class::FlowMatchEuler,
        }
    }

    /// Whether it walks the table of training timesteps itself, in whole timesteps.
    pub(super) fn by_table(self) -> bool {
        matches!(self, Class::Ddim | Class::Pndm | Class::Lcm)
    }

    fn knows_zero_terminal(self) -> bool {
        !matches!(
            self,
            Class::Pndm
                | Class::Heun
                | Class::DpmSde
                | Class::DpmSinglestep
                | Class::FlowMatchEuler
        )
    }

    fn knows_final_sigma(self) -> bool {
        matches!(
            self,
            Class::Euler | Class::DpmMultistep | Class::DpmSinglestep | Class::UniPc
        )
    }
}

/// What a network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// The noise in the sample.
    Epsilon,
    /// Velocity: signal times noise less noise level times picture.
    Velocity,
    /// The picture.
    Sample,
    /// The direction from the picture to the noise, of flow matching.
    Flow,
}

/// How timesteps are spread over the training timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

/// The noise level after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinalSigma {
    Zero,
    Least,
}

/// The second-order formula of the DPM solvers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Formula {
    Midpoint,
    Heun,
}

/// A scheduler's options, as one class understands them.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) class: Class,
    pub(super) train_steps: usize,
    pub(super) growth: Growth,
    /// Share of the picture's variance at every training timestep.
    pub(super) signal: Arc<[f32]>,
    pub(super) final_signal: f32,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) steps_offset: usize,
    pub(super) schedule: Schedule,
    pub(super) clip: Option<f32>,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) final_sigma: FinalSigma,
    pub(super) order: usize,
    pub(super) formula: Formula,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) lambda_min: f64,
    /// UniPC's B(h): true for `expm1(h)`, false for `h`.
    pub(super) bh2: bool,
    pub(super) uncorrected: Vec<usize>,
    pub(super) original_steps: usize,
    pub(super) timestep_scaling: f64,
    pub(super) noise_seed: Option<u64>,
}

/// Reads `value` for `class`.
pub(super) fn read(value: &Value, class: Class) -> Result<Options> {
    let config = ConfigReader::new("scheduler", value);
    refuse(&config, class)?;
    let train_steps = config.size("num_train_timesteps", Some(1000), 1..=TRAIN_STEPS_MAX)?;
    let growth = growth(&config, class)?;
    let signal = signal(&config, class, growth, train_steps)?;
    let one = config.flag(
        "set_alpha_to_one",
        matches!(class, Class::Ddim | Class::Lcm),
    )?;
    let final_signal = if one { 1.0 } else { signal[0] };
    let clips = match class {
        Class::Ddim => config.flag("clip_sample", true)?,
        Class::Lcm | Class::Heun => config.flag("clip_sample", false)?,
        _ => false,
    };
    let clip = if clips {
        Some(config.number("clip_sample_range", Some(1.0))? as f32)
    } else {
        None
    };
    Ok(Options {
        class,
        train_steps,
        growth,
        signal: signal.into(),
        final_signal,
        prediction: prediction(&config, class)?,
        spacing: spacing(&config, class)?,
        steps_offset: config.size("steps_offset", Some(0), 0..=TRAIN_STEPS_MAX)?,
        schedule: schedule(&config, class)?,
        clip,
        sigma_min: optional(&config, "sigma_min")?,
        sigma_max: optional(&config, "sigma_max")?,
        final_sigma: final_sigma(&config, class)?,
        order: order(&config, class)?,
        formula: formula(&config, class)?,
        lower_order_final: config.flag("lower_order_final", class != Class::DpmSinglestep)?,
        euler_at_final: config.flag("euler_at_final", false)?,
        lambda_min: lambda_min(&config)?,
        bh2: bh2(&config, class)?,
        uncorrected: uncorrected(&config)?,
        original_steps: config.size("original_inference_steps", Some(50), 1..=TRAIN_STEPS_MAX)?,
        timestep_scaling: config.number("timestep_scaling", Some(10.0))?,
        noise_seed: noise_seed(&config)?,
    })
}

/// Refuses options that change the result and are not built.
fn refuse(config: &ConfigReader<'_>, class: Class) -> Result<()> {
    let flags: &[&str] = match class {
        Class::Ddim | Class::Lcm => &["thresholding"],
        Class::DpmMultistep => &["thresholding", "use_lu_lambdas", "use_flow_sigmas"],
        Class::DpmSinglestep | Class::UniPc => &["thresholding", "use_flow_sigmas"],
        Class::FlowMatchEuler => &["invert_sigmas"],
        _ => &[],
    };
    for flag in flags {
        if config.flag(flag, false)? {
            return Err(config.error(flag, "is true, which is not supported"));
        }
    }
    match class {
        // What another class' file leaves out means PLMS alone, as people who ask for it by name expect.
        Class::Pndm if !config.flag("skip_prk_steps", !of_pndm(config)?)? => Err(config.error(
            "skip_prk_steps",
            "is not true; the Runge-Kutta start of PNDM is not supported",
        )),
        Class::Euler => {
            config.only("interpolation_type", "linear")?;
            config.only("timestep_type", "discrete")
        }
        Class::DpmMultistep | Class::DpmSinglestep if config.get("variance_type").is_some() => {
            Err(config.error("variance_type", "is set; learned variance is not supported"))
        }
        Class::UniPc if !config.flag("predict_x0", true)? => {
            Err(config.error("predict_x0", "is false, which is not supported"))
        }
        Class::UniPc if config.get("solver_p").is_some() => {
            Err(config.error("solver_p", "is set, which is not supported"))
        }
        _ => Ok(()),
    }
}

fn of_pndm(config: &ConfigReader<'_>) -> Result<bool> {
    Ok(config.word("_class_name", "")? == Class::Pndm.name())
}

fn growth(config: &ConfigReader<'_>, class: Class) -> Result<Growth> {
    let default = if class == Class::Lcm {
        "scaled_linear"
    } else {
        "linear"
    };
    match config.word("beta_schedule", default)? {
        "linear" => Ok(Growth::Linear),
        "scaled_linear" => Ok(Growth::ScaledLinear),
        "squaredcos_cap_v2" => Ok(Growth::Cosine),
        other => Err(config.error(
            "beta_schedule",
            format!("is '{other}', not linear, scaled_linear or squaredcos_cap_v2"),
        )),
    }
}

fn signal(
    config: &ConfigReader<'_>,
    class: Class,
    growth: Growth,
    train_steps: usize,
) -> Result<Vec<f32>> {
    let (start, end) = match class {
        Class::Heun | Class::DpmSde | Class::Lcm => (0.00085, 0.012),
        _ => (0.0001, 0.02),
    };
    let start = config.number("beta_start", Some(start))?;
    let end = config.number("beta_end", Some(end))?;
    for (key, beta) in [("beta_start", start), ("beta_end", end)] {
        if !(0.0..1.0).contains(&beta) {
            return Err(config.error(key, format!("is {beta}, not from 0 to below 1")));
        }
    }
    let mut betas = match trained_betas(config, train_steps)? {
        Some(betas) => betas,
        None => tables::betas(growth, start, end, train_steps),
    };
    let zero_terminal =
        class.knows_zero_terminal() && config.flag("rescale_betas_zero_snr", false)?;
    if zero_terminal {
        betas = tables::without_terminal_signal(&betas);
    }
    let mut signal = tables::signal(&betas);
    let falls = signal.windows(2).all(|pair| pair[1] < pair[0]);
    if !falls || signal.iter().any(|share| !(0.0..=1.0).contains(share)) {
        return Err(config.error("beta_end", "gives noise levels that do not grow"));
    }
    if zero_terminal
        && !class.by_table()
        && let Some(last) = signal.last_mut()
    {
        // Not quite nothing, so that the first sigma is finite; the same number as in the reference, even where the
        // timestep before has less.
        *last = 2.0_f32.powi(-24);
    }
    Ok(signal)
}

fn trained_betas(config: &ConfigReader<'_>, train_steps: usize) -> Result<Option<Vec<f32>>> {
    let Some(value) = config.get("trained_betas") else {
        return Ok(None);
    };
    let list = value.as_array().filter(|list| list.len() == train_steps);
    let betas = list.and_then(|list| {
        let beta = |item: &Value| item.as_f64().filter(|beta| (0.0..1.0).contains(beta));
        list.iter()
            .map(|item| beta(item).map(|beta| beta as f32))
            .collect::<Option<Vec<f32>>>()
    });
    let wanted = || format!("is not a list of {train_steps} numbers from 0 to below 1");
    betas
        .map(Some)
        .ok_or_else(|| config.error("trained_betas", wanted()))
}

fn prediction(config: &ConfigReader<'_>, class: Class) -> Result<Prediction> {
    if class == Class::FlowMatchEuler {
        return Ok(Prediction::Flow);
    }
    let without_sample = matches!(class, Class::Pndm | Class::EulerAncestral | Class::DpmSde);
    match config.word("prediction_type", "epsilon")? {
        "epsilon" => Ok(Prediction::Epsilon),
        "v_prediction" => Ok(Prediction::Velocity),
        "sample" if without_sample => Err(config.error(
            "prediction_type",
            format!("is 'sample', which {} does not know", class.name()),
        )),
        "sample" => Ok(Prediction::Sample),
        other => Err(config.error(
            "prediction_type",
            format!("is '{other}', not epsilon, v_prediction or sample"),
        )),
    }
}

fn spacing(config: &ConfigReader<'_>, class: Class) -> Result<Spacing> {
    let default = match class {
        // This class has no such option.
        Class::DpmSinglestep => return Ok(Spacing::Linspace),
        Class::Ddim | Class::Pndm | Class::Lcm => "leading",
        _ => "linspace",
    };
    match config.word("timestep_spacing", default)? {
        "leading" => Ok(Spacing::Leading),
        "linspace" => Ok(Spacing::Linspace),
        "trailing" => Ok(Spacing::Trailing),
        other => Err(config.error(
            "timestep_spacing",
            format!("is '{other}', not leading, linspace or trailing"),
        )),
    }
}

fn schedule(config: &ConfigReader<'_>, class: Class) -> Result<Schedule> {
    if class.by_table() || class == Class::EulerAncestral {
        return Ok(Schedule::Normal);
    }
    let mut schedule = Schedule::Normal;
    for (key, meaning) in [
        ("use_karras_sigmas", Schedule::Karras),
        ("use_exponential_sigmas", Schedule::Exponential),
        ("use_beta_sigmas", Schedule::Beta),
    ] {
        if config.flag(key, false)? {
            if schedule != Schedule::Normal {
                return Err(config.error(key, "is true beside another schedule"));
            }
            schedule = meaning;
        }
    }
    Ok(schedule)
}

fn optional(config: &ConfigReader<'_>, key: &str) -> Result<Option<f64>> {
    if config.get(key).is_none() {
        return Ok(None);
    }
    let sigma = config.number(key, None)?;
    if sigma > 0.0 {
        Ok(Some(sigma))
    } else {
        Err(config.error(key, format!("is {sigma}, not above 0")))
    }
}

fn final_sigma(config: &ConfigReader<'_>, class: Class) -> Result<FinalSigma> {
    if !class.knows_final_sigma() {
        return Ok(FinalSigma::Zero);
    }
    match config.word("final_sigmas_type", "zero")? {
        "zero" => Ok(FinalSigma::Zero),
        "sigma_min" => Ok(FinalSigma::Least),
        other => Err(config.error(
            "final_sigmas_type",
            format!("is '{other}', not zero or sigma_min"),
        )),
    }
}

fn order(config: &ConfigReader<'_>, class: Class) -> Result<usize> {
    let most = if class == Class::DpmSinglestep { 2 } else { 3 };
    config.size("solver_order", Some(2), 1..=most)
}

/// The DPM solvers' formula; the names that other classes use for theirs mean the default, as in the reference.
fn formula(config: &ConfigReader<'_>, class: Class) -> Result<Formula> {
    if !matches!(class, Class::DpmMultistep | Class::DpmSinglestep) {
        return Ok(Formula::Midpoint);
    }
    match config.word("solver_type", "midpoint")? {
        "midpoint" | "logrho" | "bh1" | "bh2" => Ok(Formula::Midpoint),
        "heun" => Ok(Formula::Heun),
        other => Err(config.error("solver_type", format!("is '{other}', not midpoint or heun"))),
    }
}

fn bh2(config: &ConfigReader<'_>, class: Class) -> Result<bool> {
    if class != Class::UniPc {
        return Ok(true);
    }
    match config.word("solver_type", "bh2")? {
        "bh2" | "midpoint" | "heun" | "logrho" => Ok(true),
        "bh1" => Ok(false),
        other => Err(config.error("solver_type", format!("is '{other}', not bh1 or bh2"))),
    }
}

/// Whether the file's own algorithm of the DPM solvers draws noise.
pub(super) fn stochastic(config: &ConfigReader<'_>) -> Result<bool> {
    match config.word("algorithm_type", "dpmsolver++")? {
        "dpmsolver++" | "deis" => Ok(false),
        "sde-dpmsolver++" => Ok(true),
        other => Err(config.error(
            "algorithm_type",
            format!("is '{other}', not dpmsolver++ or sde-dpmsolver++"),
        )),
    }
}

/// Where log signal to noise is cut off; minus infinity is no JSON number and may come as a word.
fn lambda_min(config: &ConfigReader<'_>) -> Result<f64> {
    match config.get("lambda_min_clipped") {
        None => Ok(f64::NEG_INFINITY),
        Some(Value::String(word)) if matches!(word.as_str(), "-inf" | "-Infinity") => {
            Ok(f64::NEG_INFINITY)
        }
        Some(_) => config.number("lambda_min_clipped", None),
    }
}

fn uncorrected(config: &ConfigReader<'_>) -> Result<Vec<usize>> {
    match config.get("disable_corrector") {
        Some(Value::Array(list)) if !list.is_empty() => config.sizes(
            "disable_corrector",
            None,
            TRAIN_STEPS_MAX,
            0..=TRAIN_STEPS_MAX,
        ),
        Some(Value::Array(_)) | None => Ok(Vec::new()),
        Some(other) => Err(config.error("disable_corrector", format!("is {other}, not a list"))),
    }
}

fn noise_seed(config: &ConfigReader<'_>) -> Result<Option<u64>> {
    match config.get("noise_sampler_seed") {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| {
            config.error(
                "noise_sampler_seed",
                format!("is {value}, not a whole number"),
            )
        }),
    }
}
