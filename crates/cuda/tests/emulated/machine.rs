//! The kernels as a library of this machine.

use crate::gpu;
use lowtide_cuda::ops::launches::Launch;
use std::ffi::{CString, OsString, c_char};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

type Emulate =
    unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *const u64, usize) -> i32;

/// What runs kernels; one at a time, since their threads are its own globals.
pub(crate) enum Machine {
    Emulated(Emulate),
    Gpu,
}

impl Machine {
    pub(crate) fn run(&self, launch: &Launch) {
        let Machine::Emulated(emulate) = self else {
            return gpu::run(launch);
        };
        let name = CString::new(launch.kernel).unwrap();
        // SAFETY: the kernel's addresses are of memory that the test holds, as large as the description checked.
        let answer = unsafe {
            emulate(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                launch.arguments.as_ptr(),
                launch.arguments.len(),
            )
        };
        assert_eq!(
            answer,
            0,
            "{}: 1 is no such kernel, 2 other than {} arguments, 3 a block that hangs, 4 parts of warps",
            launch.kernel,
            launch.arguments.len()
        );
    }
}

/// The machine, or nothing where there is no compiler: then `test` is told to be skipped.
pub(crate) fn machine(test: &str) -> Option<MutexGuard<'static, Machine>> {
    static MACHINE: OnceLock<Option<Mutex<Machine>>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        let machine = if gpu::is_wanted() {
            Machine::Gpu
        } else {
            build(&compiler()?)
        };
        Some(Mutex::new(machine))
    });
    if machine.is_none() {
        skip(test, "no C++ compiler ($CXX, c++, g++, clang++)");
    }
    let lock = machine.as_ref()?.lock();
    Some(lock.unwrap_or_else(PoisonError::into_inner))
}

fn skip(test: &str, reason: &str) {
    eprintln!("skipped, not passed: {test}: {reason}");
    if let Some(file) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        use std::io::Write;
        let mut skips = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(skips, "cuda::emulated::{test}: {reason}").unwrap();
    }
}

fn compiler() -> Option<OsString> {
    let named = std::env::var_os("CXX");
    let known = ["c++", "g++", "clang++"].map(OsString::from);
    named.into_iter().chain(known).find(|name| {
        let answer = Command::new(name).arg("--version").output();
        answer.is_ok_and(|answer| answer.status.success())
    })
}

/// The sources of the kernels, and what they are compiled as here, in a number.
fn fingerprint(kernels: &Path) -> u64 {
    let mut files: Vec<PathBuf> = std::fs::read_dir(kernels)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    FLAGS.hash(&mut hasher);
    for file in files {
        std::fs::read(file).unwrap().hash(&mut hasher);
    }
    hasher.finish()
}

const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O2",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    // Jumps from one stack to another are meant.
    "-U_FORTIFY_SOURCE",
    "-DLOWTIDE_EMULATE",
    "-shared",
    "-fPIC",
    "-w",
];

/// The library's file, compiled once for all tests: each of them may be a process.
fn compiled(compiler: &OsString) -> PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("emulated-{:016x}.so", fingerprint(&kernels)));
    if library.exists() {
        return library;
    }
    let own = folder.join(format!("emulated-{}.so", std::process::id()));
    let output = Command::new(compiler)
        .args(FLAGS)
        .arg("-include")
        .arg(kernels.join("emulate.h"))
        .args(["-x", "c++"])
        .arg(kernels.join("all.cu"))
        .arg("-o")
        .arg(&own)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "the kernels do not compile: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::rename(&own, &library).unwrap();
    library
}

fn build(compiler: &OsString) -> Machine {
    let library = compiled(compiler);
    // SAFETY: the library is the one just made; loading it registers its kernels and does nothing else.
    let loaded = unsafe { libloading::Library::new(&library) }.unwrap();
    let loaded = Box::leak(Box::new(loaded));
    // SAFETY: kernels/emulate.h declares it so.
    let emulate = *unsafe { loaded.get::<Emulate>(b"lowtide_emulate") }.unwrap();
    Machine::Emulated(emulate)
}
