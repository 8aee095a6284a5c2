//! `lowtide detail` and `lowtide detect` in this process: from arguments to a run of the kind `detail`, and to a look.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lowtide_engine::detector::{Detector, Search};
use lowtide_engine::processor::{Files, Opened, Order, Product, Setup};
use lowtide_engine::{Error, Options, PrecisionChoice, processors};
use lowtide_kernels as kernels;
use lowtide_media::{Format, Limits, Pixels};
use serde_json::{Map, Value, json};

use crate::args::{DetailArgs, DetectArgs, PrecisionArg, QualityArg};
use crate::failure::Failure;
use crate::gpu;
use crate::interrupt::Interrupt;
use crate::named_files::Places;
use crate::output::{Staged, check_writable, format_of};
use crate::progress::Progress;
use crate::request::{detector_here, option_of, put_sampling, read_picture};
use crate::run::{check_precision, not_written};
use crate::service::{Surroundings, models_settings};
use crate::{console, drive, models};

/// The kind of job.
pub(crate) const KIND: &str = "detail";
/// What the picture is called in a request of this process.
const IMAGE: &str = "image";

/// Repairs the picture.
pub(crate) fn run(args: &DetailArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    kernels::isa_from_env().map_err(Failure::Mistake)?;
    let device = args.device.unwrap_or_default();
    check_precision(args.precision, device)?;
    let output = output(args)?;
    let file = read_picture("the picture", &args.picture)?;
    let folder = models::open_or_fetch(&args.model, false, args.quiet || args.json)?;
    let all = processors::all().into_iter();
    let mut found = all.filter(|one| one.kind() == KIND);
    let processor = found
        .next()
        .context("the program lacks the kind 'detail'")?;
    if !processor.runs(&folder) {
        return Err(Failure::mistake(format!(
            "--model: {} is a {}, which draws no pictures",
            folder.name, folder.class_name
        )));
    }
    let places = models_settings(&Surroundings::of_process())?.places;
    gpu::put(device, (args.budget, args.reserve))?;
    let setup = Setup {
        options: options(args),
        files: Arc::new(Here { file, places }),
    };
    let name = folder.name.clone();
    let opened = processor.open(&name, Some(folder), setup)?;
    let request = request(args, &output, IMAGE)?;
    let request = opened.check(&request).map_err(in_options)?;
    let product = drive(&*opened, request, args, &interrupt)?;
    let file = product.files.first().context("no picture came of it")?;
    let staged = Staged::write(&output, &file.content);
    staged
        .and_then(Staged::publish)
        .map_err(|cause| not_written(&output, cause))?;
    tell(args, &output, &product.report, started)
}

/// What is asked, as JSON: the same for a server and for this process.
///
/// # Errors
/// When the output's ending is no format, or there are more prompts than passes.
pub(crate) fn request(args: &DetailArgs, output: &Path, image: &str) -> Result<Value, Failure> {
    let mut request = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            request.insert(name.to_owned(), value);
        }
    };
    put("image", json!(image));
    put("prompt", json!(args.prompt));
    put("negative", json!(args.negative));
    put("steps", json!(args.steps));
    put("guidance", json!(args.guidance));
    put("seed", json!(args.seed));
    let quality = match args.quality {
        QualityArg::Exact => "exact",
        QualityArg::Auto => "auto",
    };
    put("quality", json!(quality));
    put("output_format", json!(format_of(output)?.name()));
    put_sampling(&args.sampling, &mut put);
    if args.repair.any() {
        let passes = args.repair.passes().map_err(Failure::mistake)?;
        put("passes", json!(passes));
    }
    Ok(Value::Object(request))
}

/// Where the result goes, tried for writing.
///
/// # Errors
/// When it cannot be written, or would replace the picture.
pub(crate) fn output(args: &DetailArgs) -> Result<PathBuf, Failure> {
    let output = match &args.output {
        Some(path) => path.clone(),
        None => {
            let stem = args.picture.file_stem().unwrap_or_default();
            let name = format!("{}-detail.png", stem.to_string_lossy());
            args.picture.with_file_name(name)
        }
    };
    format_of(&output)?;
    if output.exists() && output.canonicalize().ok() == args.picture.canonicalize().ok() {
        return Err(Failure::mistake(format!(
            "-o '{}' would replace the picture itself; name another file",
            output.display()
        )));
    }
    check_writable(&output)?;
    Ok(output)
}

fn options(args: &DetailArgs) -> Options {
    Options {
        budget: args.budget,
        reserve: args.reserve,
        threads: args.threads,
        precision: args
            .precision
            .map_or(PrecisionChoice::Auto, PrecisionArg::choice),
        // Thing after thing is drawn by the same weights.
        keep_weights: true,
        ..Options::default()
    }
}

/// A field that is wrong was written as an option.
fn in_options(error: Error) -> Failure {
    match error {
        Error::Request { what, problem } => match &what[..] {
            IMAGE => Failure::mistake(format!("the picture {problem}")),
            "passes" => Failure::mistake(format!("--detail {problem}")),
            what => match option_of(what) {
                Some(option) => Failure::mistake(format!("{option} {problem}")),
                None => Failure::mistake(format!("{what} {problem}")),
            },
        },
        other => other.into(),
    }
}

/// Steps until the picture is finished or somebody asks to stop.
fn drive(
    opened: &dyn Opened,
    request: Value,
    args: &DetailArgs,
    interrupt: &Interrupt,
) -> Result<Product, Failure> {
    let progress = match args.json || args.quiet {
        true => Progress::silent(),
        false => Progress::on_stderr(),
    };
    let resume = None;
    let run = opened
        .start(vec![Order { request, resume }])
        .map_err(in_options)?;
    drive::drive(run, progress, interrupt, in_options)
}

/// The whole job in a few lines, and where the picture is.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn tell(
    args: &DetailArgs,
    output: &Path,
    report: &Value,
    started: Instant,
) -> Result<(), Failure> {
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        let mut line = report.clone();
        line["outputs"] = json!([output.display().to_string()]);
        line["seconds"]["total"] = json!(seconds);
        return Ok(console::print(&format!("{line}\n"))?);
    }
    if !args.quiet {
        for pass in report["passes"].as_array().into_iter().flatten() {
            console::note(&sentence(pass));
        }
        for note in report["notes"].as_array().into_iter().flatten() {
            console::note(note.as_str().unwrap_or_default());
        }
        console::note(&format!("{seconds:.2} s in all"));
        console::print(&format!("{}\n", output.display()))?;
    }
    Ok(())
}

/// What came of a pass.
fn sentence(pass: &Value) -> String {
    let things = pass["things"].as_array().into_iter().flatten();
    let thing = |thing: &Value| {
        let label = thing["label"].as_str().unwrap_or_default();
        format!("{label} {:.2}", thing["score"].as_f64().unwrap_or(0.0))
    };
    let things: Vec<String> = things.map(thing).collect();
    let detector = pass["detector"].as_str().unwrap_or_default();
    match things.is_empty() {
        true => format!("{detector}: nothing"),
        false => format!("{detector}: {}; drawn {}", things.join(", "), pass["drawn"]),
    }
}

/// The one picture that a request of this process names, and files by name.
struct Here {
    file: Vec<u8>,
    places: Places,
}

impl Files for Here {
    fn input(&self, _: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        match self.file.len() as u64 > bytes_max {
            true => Err(format!("has more than {bytes_max} bytes")),
            false => Ok(self.file.clone()),
        }
    }

    fn lora(&self, name: &str) -> Result<PathBuf, String> {
        self.places.lora(name)
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        self.places.words()
    }

    fn detector(&self, name: &str) -> Result<PathBuf, String> {
        detector_here(name, &self.places)
    }
}

/// Looks at the picture and prints what is in it.
pub(crate) fn detect(args: &DetectArgs) -> Result<(), Failure> {
    kernels::isa_from_env().map_err(Failure::Mistake)?;
    if let Some(path) = &args.output {
        format_of(path)?;
        check_writable(path)?;
    }
    if let Some(threads) = args.threads {
        kernels::set_threads(threads).map_err(|wrong| Failure::mistake(wrong.to_string()))?;
    }
    let file = read_picture("the picture", &args.picture)?;
    let decoded = lowtide_media::decode(&file, &Limits::default());
    let wrong =
        |cause| Failure::mistake(format!("the picture '{}': {cause}", args.picture.display()));
    let picture = decoded.map_err(wrong)?.picture;
    let places = models_settings(&Surroundings::of_process())?.places;
    let path = detector_here(&args.detector, &places)
        .map_err(|why| Failure::mistake(format!("--detector '{}': {why}", args.detector)))?;
    let detector = Detector::open(&path)?;
    let names = args.classes.split(',').map(str::trim);
    let search = Search {
        confidence: args.confidence,
        overlap: args.overlap,
        side: args.side.clamp(32, 4096),
        classes: names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
    };
    let options = Options {
        budget: args.budget,
        ..Options::default()
    };
    let started = Instant::now();
    let looked = detector
        .find(&picture, &search, &options)
        .map_err(in_options)?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &args.output {
        write_masks(path, &looked.things, (picture.width(), picture.height()))?;
    }
    if args.json {
        let things: Vec<Value> = looked
            .things
            .iter()
            .map(|thing| {
                json!({ "box": thing.edges, "score": thing.score, "class": thing.class, "label": thing.label })
            })
            .collect();
        let line = json!({
            "model": detector.name(), "architecture": detector.architecture(), "width": picture.width(),
            "height": picture.height(), "detections": things, "seconds": seconds, "peak": looked.peak.0,
        });
        return Ok(console::print(&format!("{line}\n"))?);
    }
    for thing in &looked.things {
        let [left, top, right, bottom] = thing.edges;
        console::print(&format!(
            "{} {:.2}: {left:.1} {top:.1} {right:.1} {bottom:.1}\n",
            thing.label, thing.score
        ))?;
    }
    if looked.things.is_empty() {
        console::note("nothing was found");
    }
    Ok(())
}

fn write_masks(
    path: &Path,
    things: &[lowtide_engine::detector::Detection],
    (width, height): (u32, u32),
) -> Result<(), Failure> {
    let mut rgb = vec![0; 3 * width as usize * height as usize];
    for thing in things {
        let mask = thing.mask(width, height)?;
        for (pixel, &value) in rgb.chunks_exact_mut(3).zip(mask.values()) {
            if value > 0 {
                pixel.fill(u8::MAX);
            }
        }
    }
    let format = format_of(path).unwrap_or(Format::Png);
    let rgb = &rgb;
    let pixels = Pixels { width, height, rgb };
    let file = lowtide_media::encode(pixels, format, "").context("the masks")?;
    let staged = Staged::write(path, &file);
    staged
        .and_then(Staged::publish)
        .map_err(|cause| not_written(path, cause))
}
