//! Which instruction set the kernels run on, chosen once at run time.

#[cfg(target_arch = "x86_64")]
mod amx;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::state as amx_state;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set the kernels are written for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, vectorised by the compiler for the target's baseline.
    Portable,
    /// AVX2 with FMA and F16C: 8 lanes.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: 16 lanes.
    Avx512,
    /// The same with native products of bf16 pairs.
    Avx512Bf16,
    /// The same with AMX tiles for products of bf16.
    Amx,
    /// The kernels for AMX with its instructions emulated one number at a time: for tests on
    /// machines without it. Never chosen by itself.
    AmxEmulated,
}

impl Isa {
    const ALL: [Isa; 6] = [
        Isa::Portable,
        Isa::Avx2,
        Isa::Avx512,
        Isa::Avx512Bf16,
        Isa::Amx,
        Isa::AmxEmulated,
    ];

    /// The word that `LOWTIDE_ISA` takes for it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
            Isa::AmxEmulated => "amx-emulated",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = || {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        };
        let avx512 = || {
            avx2()
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        };
        match self {
            Isa::Portable | Isa::AmxEmulated => true,
            Isa::Avx2 => avx2(),
            Isa::Avx512 => avx512(),
            Isa::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16"),
            Isa::Amx => avx512() && amx_state().is_ok(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        matches!(self, Isa::Portable | Isa::AmxEmulated)
    }

    /// Whether products of bf16 are tiles'.
    pub(crate) fn has_tiles(self) -> bool {
        matches!(self, Isa::Amx | Isa::AmxEmulated)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The instruction sets this machine can run, slowest first; [`Isa::AmxEmulated`] is not one.
pub fn available_isas() -> Vec<Isa> {
    Isa::ALL
        .into_iter()
        .filter(|isa| isa.is_available() && *isa != Isa::AmxEmulated)
        .collect()
}

/// Why AMX is not used although the processor has it, if that is so: the operating system must
/// permit it, and a known product come out right.
pub fn amx_refused() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return amx_state().err().flatten();
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Reads `LOWTIDE_ISA`; without it, the fastest set this machine has.
///
/// # Errors
/// A sentence for the user when the variable names no instruction set, or one that is not here.
pub fn isa_from_env() -> Result<Isa, String> {
    let available = available_isas();
    let Some(value) = std::env::var_os("LOWTIDE_ISA").filter(|value| !value.is_empty()) else {
        return Ok(available.into_iter().max().unwrap_or(Isa::Portable));
    };
    let value = value.to_string_lossy().to_ascii_lowercase();
    let names = |isas: &[Isa]| isas.iter().map(|isa| isa.name()).collect::<Vec<_>>();
    let Some(isa) = Isa::ALL.into_iter().find(|isa| isa.name() == value) else {
        return Err(format!(
            "LOWTIDE_ISA is '{value}', which is no instruction set; use one of {}",
            names(&Isa::ALL).join(", ")
        ));
    };
    if !isa.is_available() {
        return Err(format!(
            "LOWTIDE_ISA asks for {isa}, which this processor lacks; it has {}",
            names(&available).join(", ")
        ));
    }
    Ok(isa)
}

/// 0 stands for "not chosen yet", otherwise the place in [`Isa::ALL`] plus one.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The instruction set in use: what [`isa_from_env`] said at the first call, unless forced.
///
/// # Panics
/// When `LOWTIDE_ISA` is wrong; a program that wants to say so politely calls [`isa_from_env`] first.
pub fn isa() -> Isa {
    match CHOSEN.load(Ordering::Relaxed) {
        0 => {
            let isa = isa_from_env().unwrap_or_else(|message| panic!("{message}"));
            CHOSEN.store(isa as u8 + 1, Ordering::Relaxed);
            isa
        }
        chosen => Isa::ALL[usize::from(chosen) - 1],
    }
}

/// Forces an instruction set for the whole process, for tests and benches.
///
/// # Errors
/// A sentence naming what is here when the processor lacks it.
pub fn force_isa(isa: Isa) -> Result<(), String> {
    if !isa.is_available() {
        return Err(format!("this processor has no {isa}"));
    }
    CHOSEN.store(isa as u8 + 1, Ordering::Relaxed);
    Ok(())
}

/// Whether products of bf16 pairs are one instruction here; elsewhere they are emulated in f32.
pub fn native_bf16() -> bool {
    matches!(isa(), Isa::Avx512Bf16 | Isa::Amx | Isa::AmxEmulated)
}
