//! The CPU as a device: its memory is RAM, counted and limited by [`lowtide_kernels::memory`].

use std::fs;
use std::sync::Once;
use std::time::Instant;

use lowtide_core::DeviceProfile;
use lowtide_kernels as kernels;
use lowtide_kernels::memory::CountingAllocator;
use lowtide_kernels::{Activation, Matrix, Precision, Rows, RowsMut, Stored};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Copying weights takes a core from computing: with t threads, this share of a copy is free.
const COPY_SPEED_BYTES_PER_S: f64 = 4.0e9;

/// A first read may have to come from a disk. The true rate is unknown before it is measured; an ordinary NVMe drive
/// reads about this fast.
const COLD_SPEED_BYTES_PER_S: f64 = 1.5e9;

/// Starting a block: looking up its names, forking to the threads.
const BLOCK_OVERHEAD_S: f64 = 50e-6;

/// Makes frees of large buffers go back to the system at once, so that "released" is true outside the process, too.
/// Without it glibc raises its threshold as it sees large blocks freed and keeps them.
#[allow(unsafe_code, reason = "mallopt has no safe form")]
pub fn settle_allocator() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            const MMAP_THRESHOLD_BYTES: i32 = 128 << 10;
            const ARENAS: i32 = 2;
            // SAFETY: mallopt only sets parameters of the allocator, and is called before other threads are made.
            unsafe {
                libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
                libc::mallopt(libc::M_ARENA_MAX, ARENAS);
            }
        }
    });
}

/// Begins to hand memory over: while the guard lives, the memory of weights that are forgotten is laid aside for those read
/// next, and [`give_back`] leaves it there. The end of a session, or `give_back` later, gives back what nobody took.
pub use lowtide_kernels::memory::{HandOver, hand_over};

/// Gives back to the system what was freed but is kept for reuse, so that a released model is gone for others, too.
#[allow(unsafe_code, reason = "malloc_trim has no safe form")]
pub fn give_back() {
    lowtide_kernels::memory::give_back();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: malloc_trim takes a number of bytes to keep and may be called at any time, from any thread.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// The processor's name, where the system tells.
pub fn name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    model.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |name| name.trim().to_owned(),
    )
}

/// Takes pages of the program's own file out of this process' memory: they are read again from the file, or from the
/// system's cache of it, when somebody looks at them. Without it the weights of a model that is part of the program
/// would count as resident long after the model was released.
#[allow(unsafe_code, reason = "madvise has no safe form")]
pub fn forget_pages(bytes: &'static [u8]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PAGE_BYTES: usize = 4096;
        let begin = (bytes.as_ptr() as usize).next_multiple_of(PAGE_BYTES);
        let end = (bytes.as_ptr() as usize + bytes.len()) / PAGE_BYTES * PAGE_BYTES;
        if end > begin {
            // SAFETY: the pages lie wholly within a constant of the program, which nobody can have written: they are
            // clean pages of its file, so that dropping them changes nothing but the time of the next look. On a system
            // with larger pages the call fails, which does no harm either.
            unsafe {
                libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_DONTNEED);
            }
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = bytes;
}

/// Bytes a second at which plans expect weights to be read for the first time.
pub fn read_bytes_per_s() -> f64 {
    COLD_SPEED_BYTES_PER_S
}

/// Threads that compute.
pub fn threads() -> usize {
    kernels::threads()
}

/// What products are multiplied in, as a word.
pub fn precision_word(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
        Precision::Tf32 => "tf32",
        Precision::F16 => "f16",
    }
}

/// The rates plans are made with; the speed of computing is measured in a few milliseconds.
pub fn profile(precision: Precision) -> DeviceProfile {
    let threads = kernels::threads().max(1) as f64;
    DeviceProfile {
        name: "cpu".to_owned(),
        link_bytes_per_s: COPY_SPEED_BYTES_PER_S,
        cold_bytes_per_s: COLD_SPEED_BYTES_PER_S,
        flops_per_s: measure_flops(precision),
        block_overhead_s: BLOCK_OVERHEAD_S,
        overlap: (threads - 1.0) / threads,
    }
}

/// Multiplications and additions a second in a small matrix product, the best of three.
fn measure_flops(precision: Precision) -> f64 {
    const ROWS: usize = 96;
    const DIM: usize = 512;
    let x = vec![0.5f32; ROWS * DIM];
    let weights = vec![0u8; DIM * DIM * 2];
    let matrix = Matrix {
        stored: Stored::Bf16,
        bytes: &weights,
        rows: DIM,
        cols: DIM,
        scales: None,
    };
    let mut out = vec![0f32; ROWS * DIM];
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let rows = Rows {
            data: &x,
            rows: ROWS,
            cols: DIM,
            stride: DIM,
        };
        let into = RowsMut {
            data: &mut out,
            rows: ROWS,
            cols: DIM,
            stride: DIM,
        };
        kernels::linear(rows, &matrix, None, Activation::None, precision, into);
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (ROWS * DIM * DIM) as f64 / best.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_pages_are_read_again_as_they_were() {
        static BYTES: [u8; 64 << 10] = [0xa5; 64 << 10];
        for part in [&BYTES[..], &BYTES[1..], &BYTES[..100], &BYTES[7..9000]] {
            forget_pages(part);
            assert!(
                std::hint::black_box(&BYTES)
                    .iter()
                    .all(|&byte| byte == 0xa5)
            );
        }
    }
}
