//! Whether AMX can be used: the processor, the operating system, and a product as proof.

use crate::gemm::amx::{Instructions, multiplies};
use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, _xgetbv};
use std::sync::OnceLock;

/// Bits of `EDX` of leaf 7: products of bf16, tiles.
const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;

/// Bits of XCR0 that say the operating system saves tiles: their configuration, their data.
const TILE_STATE: u64 = 0b11 << 17;

/// `Err(None)` where there is no AMX; with a reason where there is but it cannot be used.
pub(crate) fn state() -> Result<(), Option<&'static str>> {
    static STATE: OnceLock<Result<(), Option<&'static str>>> = OnceLock::new();
    *STATE.get_or_init(find)
}

fn find() -> Result<(), Option<&'static str>> {
    if !is_x86_feature_detected!("avx512bf16") || !is_x86_feature_detected!("xsave") {
        return Err(None);
    }
    // SAFETY: every x86-64 processor has the instruction. (Newer compilers know.)
    #[allow(unused_unsafe)]
    let features = unsafe {
        let known = __get_cpuid_max(0).0 >= 7;
        if known { __cpuid_count(7, 0).edx } else { 0 }
    };
    if features & AMX_BF16_AND_TILE != AMX_BF16_AND_TILE {
        return Err(None);
    }
    // SAFETY: `xsave` was found.
    if unsafe { saved_state() } & TILE_STATE != TILE_STATE {
        return Err(Some("the operating system does not save its tiles"));
    }
    if !may_use_tiles() {
        return Err(Some("the operating system does not permit its tiles"));
    }
    // SAFETY: the processor has the instructions and the operating system lets us use them.
    if unsafe { multiplies::<Instructions>() } {
        Ok(())
    } else {
        Err(Some("its products are wrong on this machine"))
    }
}

/// What the operating system saves when threads change.
///
/// # Safety
/// `xsave` must be there.
#[target_feature(enable = "xsave")]
unsafe fn saved_state() -> u64 {
    // SAFETY: register 0 exists wherever `xsave` does.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the right to use tiles, for all threads of the process.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let status: isize;
    // SAFETY: this call reads and writes no memory of ours; the kernel keeps all registers but the
    // three named.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => status,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    status == 0
}

/// How other systems give the right is not known here.
#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}
