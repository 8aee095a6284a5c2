//! Writes a Z-Image checkpoint of any size with random weights, in diffusers layout: for tests of speed, memory and
//! streaming, where what the picture shows does not matter. The same arguments give the same bytes on any machine.
//!
//! ```text
//! cargo run --release -p lowtide-weights --example random_checkpoint -- OUT --preset full --tokenizer DIR
//! ```

mod configs;
mod fill;
mod names;
mod settings;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use lowtide_core::{Bytes, TensorLayout};
use lowtide_weights::{ShardedWriter, render_header};

use fill::Filler;
use settings::Settings;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() || arguments.iter().any(|a| a == "--help" || a == "-h") {
        eprintln!("{}", settings::HELP);
        return if arguments.is_empty() {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        };
    }
    let outcome = Settings::parse(&arguments)
        .map_err(Box::<dyn Error>::from)
        .and_then(|s| write_model(&s));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn write_model(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let out = &settings.out;
    if out.exists() {
        return Err(format!(
            "{} is there already; give a folder that is not",
            out.display()
        )
        .into());
    }
    let tokenizer_class = copy_tokenizer(&settings.tokenizer, &out.join("tokenizer"))?;
    let start = Instant::now();
    let filler = Filler::new(settings.seed, settings.dtype, settings.threads);
    let mut total = Bytes::ZERO;
    for (component, base, layouts) in [
        ("text_encoder", "model", names::text_encoder(settings)),
        (
            "transformer",
            "diffusion_pytorch_model",
            names::transformer(settings),
        ),
        ("vae", "diffusion_pytorch_model", names::vae(settings)),
    ] {
        let folder = out.join(component);
        fs::create_dir_all(&folder)?;
        total += match settings.sparse {
            true => write_holes(&folder, base, &layouts)?,
            false => write_component(&filler, settings.shard_bytes, &folder, base, &layouts)?,
        };
    }
    for (file, config) in configs::all(settings, &tokenizer_class) {
        let path = out.join(file);
        fs::create_dir_all(path.parent().unwrap_or(out))?;
        fs::write(path, format!("{config:#}\n"))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let rate = Bytes((total.as_f64() / seconds) as u64);
    eprintln!("{}: {total} in {seconds:.1} s, {rate}/s", out.display());
    Ok(())
}

fn write_component(
    filler: &Filler,
    shard_bytes: Bytes,
    folder: &Path,
    base: &str,
    layouts: &[TensorLayout],
) -> Result<Bytes, Box<dyn Error>> {
    let mut writer = ShardedWriter::create(folder, base, layouts, shard_bytes)?;
    for layout in layouts {
        filler.fill(layout, |bytes| writer.write(&layout.name, bytes))?;
    }
    writer.finish()?;
    let bytes: Bytes = layouts.iter().map(TensorLayout::bytes).sum();
    let parameters: u64 = layouts.iter().map(TensorLayout::elements).sum();
    eprintln!("{}: {parameters} parameters, {bytes}", folder.display());
    Ok(bytes)
}

/// A file with a header and a hole where its weights would be.
fn write_holes(
    folder: &Path,
    base: &str,
    layouts: &[TensorLayout],
) -> Result<Bytes, Box<dyn Error>> {
    let path = folder.join(format!("{base}.safetensors"));
    let header = render_header(layouts, &[], &path.display().to_string())?;
    let bytes: Bytes = layouts.iter().map(TensorLayout::bytes).sum();
    fs::write(&path, &header)?;
    let file = fs::OpenOptions::new().write(true).open(&path)?;
    file.set_len(header.len() as u64 + bytes.0)?;
    Ok(bytes)
}

/// Copies the files of a tokenizer and returns the class that transformers should load it with.
fn copy_tokenizer(from: &Path, to: &Path) -> Result<String, Box<dyn Error>> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Read and written rather than copied, so that a read-only original does not make a read-only copy.
            fs::write(to.join(entry.file_name()), fs::read(entry.path())?)?;
        }
    }
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(to.join("tokenizer_config.json"))?)?;
    let class = config["tokenizer_class"].as_str();
    Ok(class
        .ok_or("tokenizer_config.json has no tokenizer_class")?
        .to_owned())
}
