//! `lowtide upscale` in this process: from arguments to a run of the kind `upscale`, from its product to a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lowtide_engine::processor::{Files, Opened, Order, Processor, Product};
use lowtide_engine::{Error, Options, PrecisionChoice, processors};
use lowtide_kernels as kernels;
use lowtide_weights::ModelFolder;
use serde_json::{Value, json};

use crate::args::{PrecisionArg, QualityArg, UpscaleArgs};
use crate::failure::Failure;
use crate::gpu;
use crate::interrupt::Interrupt;
use crate::output::{Staged, check_writable, format_of};
use crate::progress::Progress;
use crate::request::{option_of, read_picture};
use crate::run::{check_precision, not_written};
use crate::service::{Surroundings, models_settings};
use crate::{console, drive, models};

/// The kind of job.
pub(crate) const KIND: &str = "upscale";
/// What the picture is called in a request of this process.
const IMAGE: &str = "image";

/// Makes the picture larger.
pub(crate) fn run(args: &UpscaleArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    kernels::isa_from_env().map_err(Failure::Mistake)?;
    let device = args.device.unwrap_or_default();
    check_precision(args.precision, device)?;
    let output = output(args)?;
    let file = read_picture("the picture", &args.picture)?;
    let (name, folder) = model(args)?;
    let processor = processor()?;
    if !processor.runs(&folder) {
        return Err(Failure::mistake(format!(
            "--model: {name} is a {}, which makes no picture larger; name an RRDBNet or a SRVGGNetCompact",
            folder.class_name
        )));
    }
    gpu::put(device, (args.budget, args.reserve))?;
    let setup = lowtide_engine::processor::Setup {
        options: options(args),
        files: Arc::new(OnePicture(file)),
    };
    let opened = processor.open(&name, Some(folder), setup)?;
    let request = opened
        .check(&request(args, &output, IMAGE)?)
        .map_err(in_options)?;
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
/// When the output's ending is no format.
pub(crate) fn request(args: &UpscaleArgs, output: &Path, image: &str) -> Result<Value, Failure> {
    let mut request = json!({
        "image": image,
        "quality": match args.quality { QualityArg::Exact => "exact", QualityArg::Auto => "auto" },
        "output_format": format_of(output)?.name(),
    });
    if let Some(scale) = args.scale {
        request["scale"] = json!(scale);
    }
    if let Some(tile) = args.tile {
        request["tile"] = json!(tile);
    }
    Ok(request)
}

/// Where the result goes, tried for writing.
///
/// # Errors
/// When it cannot be written, or would replace the picture.
pub(crate) fn output(args: &UpscaleArgs) -> Result<PathBuf, Failure> {
    let output = match &args.output {
        Some(path) => path.clone(),
        None => {
            let stem = args.picture.file_stem().unwrap_or_default();
            let factor = args
                .scale
                .map_or_else(String::new, |scale| format!("-{scale}x"));
            let name = format!("{}-large{factor}.png", stem.to_string_lossy());
            args.picture.with_file_name(name)
        }
    };
    format_of(&output)?;
    let same =
        |a: &Path, b: &Path| a.canonicalize().ok().filter(|_| b.exists()) == b.canonicalize().ok();
    if output.exists() && same(&output, &args.picture) {
        return Err(Failure::mistake(format!(
            "-o '{}' would replace the picture itself; name another file",
            output.display()
        )));
    }
    check_writable(&output)?;
    Ok(output)
}

fn processor() -> Result<Arc<dyn Processor>, Failure> {
    let all = processors::all().into_iter();
    let mut found = all.filter(|one| one.kind() == KIND);
    Ok(found
        .next()
        .context("the program lacks the kind 'upscale'")?)
}

/// The network: the one that is named, or the only one there is.
fn model(args: &UpscaleArgs) -> Result<(String, ModelFolder), Failure> {
    if let Some(name) = &args.model {
        let folder = models::open(name)?;
        return Ok((folder.name.clone(), folder));
    }
    let around = Surroundings::of_process();
    let library = models::Library::new(&models_settings(&around)?, &around)?;
    let mut names = library.enlargers();
    match names.len() {
        1 => {
            let model = names.remove(0);
            Ok((model.name.clone(), model.open()?))
        }
        0 => Err(Failure::mistake(
            "no network that makes pictures larger was found; name its file with --model, such as a RealESRGAN_x4plus.pth",
        )),
        _ => {
            let names: Vec<String> = names.into_iter().map(|model| model.name).collect();
            Err(Failure::mistake(format!(
                "which network? name one with --model: {}",
                names.join(", ")
            )))
        }
    }
}

fn options(args: &UpscaleArgs) -> Options {
    Options {
        budget: args.budget,
        reserve: args.reserve,
        threads: args.threads,
        precision: args
            .precision
            .map_or(PrecisionChoice::Auto, PrecisionArg::choice),
        ..Options::default()
    }
}

/// A field that is wrong was written as an option.
fn in_options(error: Error) -> Failure {
    match error {
        Error::Request { what, problem } if what == IMAGE => {
            Failure::mistake(format!("the picture {problem}"))
        }
        Error::Request { what, problem } => match option_of(&what) {
            Some(option) => Failure::mistake(format!("{option} {problem}")),
            None => Failure::mistake(format!("{what} {problem}")),
        },
        other => other.into(),
    }
}

/// Steps until the picture is finished or somebody asks to stop.
fn drive(
    opened: &dyn Opened,
    request: Value,
    args: &UpscaleArgs,
    interrupt: &Interrupt,
) -> Result<Product, Failure> {
    let progress = match args.json || args.quiet {
        true => Progress::silent(),
        false => Progress::on_stderr(),
    };
    let order = Order {
        request,
        resume: None,
    };
    let run = opened.start(vec![order]).map_err(in_options)?;
    drive::drive(run, progress, interrupt, Failure::from)
}

/// The whole job in a line, and where the picture is.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn tell(
    args: &UpscaleArgs,
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
        let how = match report["quality"].as_str() {
            Some("approximate") => format!(", {}", report["cut"].as_str().unwrap_or_default()),
            _ => String::new(),
        };
        let (width, height) = (&report["width"], &report["height"]);
        console::note(&format!(
            "{width} x {height} pixels, {seconds:.2} s in all{how}"
        ));
        console::print(&format!("{}\n", output.display()))?;
    }
    Ok(())
}

/// The one file that a request of this process names.
struct OnePicture(Vec<u8>);

impl Files for OnePicture {
    fn input(&self, _: &str, bytes_max: u64) -> Result<Vec<u8>, String> {
        match self.0.len() as u64 > bytes_max {
            true => Err(format!("has more than {bytes_max} bytes")),
            false => Ok(self.0.clone()),
        }
    }

    fn lora(&self, _: &str) -> Result<PathBuf, String> {
        Err("there are no LoRAs here".to_owned())
    }

    fn embeddings(&self) -> Vec<(String, PathBuf)> {
        Vec::new()
    }
}
