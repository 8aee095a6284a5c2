//! Compiles the kernels with NVIDIA's compiler, where the feature `kernels` asks for it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernels are compiled for, where the compiler knows it: the machine code of these. LOWTIDE_CUDA_ARCHITECTURES
/// says others: "90" alone for one machine takes a fifth of the time and the room.
const ARCHITECTURES: &str = "80,86,89,90,120";

/// What newer GPUs translate when the kernels are loaded.
const TEXT_FOR: &str = "80";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for variable in [
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
        "LOWTIDE_CUDA_ARCHITECTURES",
        "LOWTIDE_NVCC_FLAGS",
        "LOWTIDE_FATBIN",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if std::env::var_os("CARGO_FEATURE_KERNELS").is_none() {
        return;
    }
    let out = std::env::var_os("OUT_DIR")
        .map(PathBuf::from)
        .expect("cargo sets OUT_DIR");
    let to = out.join("kernels.fatbin");
    // Kernels that were compiled elsewhere, or the name of those that a simulated driver has itself.
    if let Some(file) = std::env::var_os("LOWTIDE_FATBIN") {
        println!("cargo:rerun-if-changed={}", Path::new(&file).display());
        if let Err(error) = std::fs::copy(&file, &to) {
            panic!("LOWTIDE_FATBIN is {}: {error}", Path::new(&file).display());
        }
        return;
    }
    let compiler = find_compiler().unwrap_or_else(|| {
        panic!("the feature `kernels` needs nvcc in CUDA_HOME, CUDA_PATH or PATH; scripts/build-cuda brings one")
    });
    compile(&compiler, &to);
}

/// nvcc, and the toolkit's folder where it is known.
fn find_compiler() -> Option<PathBuf> {
    let name = if cfg!(windows) { "nvcc.exe" } else { "nvcc" };
    let homes = ["CUDA_HOME", "CUDA_PATH"].map(std::env::var_os);
    let homes = homes
        .into_iter()
        .flatten()
        .map(|home| Path::new(&home).join("bin"));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    homes
        .chain(paths)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The architectures that are wanted: of the usual ones those that the compiler knows, all where it does not say.
fn architectures(compiler: &Path) -> Vec<String> {
    let list = |text: &str| -> Vec<String> {
        let names = text.split(',').map(str::trim);
        names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    if let Ok(wanted) = std::env::var("LOWTIDE_CUDA_ARCHITECTURES") {
        return list(&wanted);
    }
    let listed = Command::new(compiler).arg("--list-gpu-code").output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let listed = listed.unwrap_or_default();
    let codes: Vec<&str> = listed.split_whitespace().collect();
    let mut usual = list(ARCHITECTURES);
    usual.retain(|name| codes.is_empty() || codes.contains(&format!("sm_{name}").as_str()));
    usual
}

fn compile(compiler: &Path, to: &Path) {
    let mut command = Command::new(compiler);
    // Compressed they take a fifth of the room; the driver opens them once, as they are loaded.
    let flags = ["-std=c++17", "-O3", "-fatbin", "-Xfatbin", "-compress-all"];
    command.args(flags).arg("-o").arg(to);
    for architecture in architectures(compiler) {
        command.arg(format!(
            "-gencode=arch=compute_{architecture},code=sm_{architecture}"
        ));
    }
    command.arg(format!(
        "-gencode=arch=compute_{TEXT_FOR},code=compute_{TEXT_FOR}"
    ));
    // As many at once as cargo allows; more for a host compiler that nvcc is not told of otherwise.
    let jobs = std::env::var("NUM_JOBS").unwrap_or_else(|_| "1".to_owned());
    command.arg(format!("--threads={jobs}"));
    if let Ok(flags) = std::env::var("LOWTIDE_NVCC_FLAGS") {
        command.args(flags.split_whitespace());
    }
    command.arg("kernels/all.cu");
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} ended with {status}", compiler.display()),
        Err(error) => panic!("{} cannot be started: {error}", compiler.display()),
    }
}
