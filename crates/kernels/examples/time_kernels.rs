//! Times single kernels on request, for `bench/kernels/against_torch.py`.
//!
//! Reads one request a line, `<kernel> <precision> <numbers...>`, and answers with the median time
//! of a call in nanoseconds. Kernels: `linear m k n`, `swiglu m k n`, `conv cin cout rows width
//! kernel stride`, `attention tq tk heads kv_heads d`. Precisions: `f32` (weights stored as f32),
//! `bf16`, and `mixed` (f32 products of weights stored as bf16). The first argument is the number
//! of threads, the second the clock: `wall`, or `cpu` for the process's, which a busy machine
//! disturbs less.
#![allow(clippy::print_stdout)] // It answers on standard output.

use lowtide_kernels::*;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

/// Calls are timed until this has passed.
const ENOUGH: Duration = Duration::from_millis(80);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let wanted = arguments
        .get(1)
        .map_or(2, |n| n.parse().expect("a number of threads"));
    let clock = match arguments.get(2).map(String::as_str) {
        None | Some("wall") => Clock::Wall(Instant::now()),
        Some("cpu") => Clock::Cpu,
        Some(other) => panic!("no clock '{other}'"),
    };
    set_threads(wanted).expect("nothing ran before");
    println!("{} on {} threads", isa(), threads());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("the pipe is text");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kernel, precision, numbers @ ..] = words.as_slice() else {
            panic!("no request: '{line}'");
        };
        let numbers: Vec<usize> = numbers
            .iter()
            .map(|word| word.parse().expect("a size"))
            .collect();
        let (precision, stored) = match *precision {
            "f32" => (Precision::F32, Stored::F32),
            "bf16" => (Precision::Bf16, Stored::Bf16),
            "mixed" => (Precision::F32, Stored::Bf16),
            other => panic!("no precision '{other}'"),
        };
        let time = match (*kernel, numbers.as_slice()) {
            ("linear", &[m, k, n]) => time_linear(clock, precision, stored, [m, k, n]),
            ("swiglu", &[m, k, n]) => time_swiglu(clock, precision, stored, [m, k, n]),
            ("conv", &[cin, cout, rows, width, kernel, stride]) => time_conv(
                clock,
                precision,
                stored,
                [cin, cout, rows, width, kernel, stride],
            ),
            ("attention", &[tq, tk, heads, kv_heads, d]) => {
                time_attention(clock, precision, [tq, tk, heads, kv_heads, d])
            }
            _ => panic!("no kernel for '{line}'"),
        };
        println!("{}", time.as_nanos());
        std::io::stdout().flush().expect("someone listens");
    }
}

/// What passes while a call runs.
#[derive(Clone, Copy)]
enum Clock {
    /// Time, since a start.
    Wall(Instant),
    /// Processor time of all threads.
    Cpu,
}

impl Clock {
    fn now(self) -> Duration {
        match self {
            Clock::Wall(start) => start.elapsed(),
            Clock::Cpu => cpu_time(),
        }
    }

    /// The median of a call.
    fn time(self, mut call: impl FnMut()) -> Duration {
        call();
        let start = self.now();
        let mut times = Vec::new();
        while self.now() - start < ENOUGH || times.len() < 3 {
            let one = self.now();
            call();
            times.push(self.now() - one);
        }
        times.sort_unstable();
        times[times.len() / 2]
    }
}

/// Processor time of the process so far.
#[cfg(target_os = "linux")]
fn cpu_time() -> Duration {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    let mut time = [0i64; 2];
    // SAFETY: on 64-bit Linux a timespec is two 64-bit integers, and the array is one.
    let status = unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "a process has a clock");
    Duration::new(time[0] as u64, time[1] as u32)
}

#[cfg(not(target_os = "linux"))]
fn cpu_time() -> Duration {
    panic!("the processor's clock is only read on Linux");
}

/// Activations as the models hand them out.
struct Numbers(memory::Buffer);

impl std::ops::Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.f32()
    }
}

impl std::ops::DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.0.f32_mut()
    }
}

fn numbers(count: usize) -> Numbers {
    let mut all = memory::Buffer::new(count * 4).expect("there is memory");
    for (i, number) in all.f32_mut().iter_mut().enumerate() {
        *number = ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
    }
    Numbers(all)
}

/// Bytes as a loader hands them out.
fn weights(stored: Stored, count: usize) -> memory::Buffer {
    let values = numbers(count);
    let mut weights = memory::Buffer::new(count * stored.size()).expect("there is memory");
    let to = weights.bytes_mut().chunks_exact_mut(stored.size());
    for (to, v) in to.zip(values.iter()) {
        match stored {
            Stored::F32 => to.copy_from_slice(&v.to_le_bytes()),
            _ => to.copy_from_slice(&half::bf16::from_f32(*v).to_le_bytes()),
        }
    }
    weights
}

fn time_linear(
    clock: Clock,
    precision: Precision,
    stored: Stored,
    [m, k, n]: [usize; 3],
) -> Duration {
    let (x, bytes, bias) = (numbers(m * k), weights(stored, n * k), numbers(n));
    let mut out = numbers(m * n);
    let matrix = Matrix {
        stored,
        bytes: bytes.bytes(),
        rows: n,
        cols: k,
        scales: None,
    };
    clock.time(|| {
        linear(
            Rows::new(&x, m, k),
            &matrix,
            Some(&bias),
            Activation::None,
            precision,
            RowsMut::new(&mut out, m, n),
        );
    })
}

fn time_swiglu(
    clock: Clock,
    precision: Precision,
    stored: Stored,
    [m, k, n]: [usize; 3],
) -> Duration {
    let (x, b1, b3) = (
        numbers(m * k),
        weights(stored, n * k),
        weights(stored, n * k),
    );
    let mut out = numbers(m * n);
    let matrix = |bytes| Matrix {
        stored,
        bytes,
        rows: n,
        cols: k,
        scales: None,
    };
    clock.time(|| {
        linear_swiglu(
            Rows::new(&x, m, k),
            &matrix(b1.bytes()),
            &matrix(b3.bytes()),
            precision,
            RowsMut::new(&mut out, m, n),
        );
    })
}

fn time_conv(
    clock: Clock,
    precision: Precision,
    stored: Stored,
    [cin, cout, rows, width, kernel, stride]: [usize; 6],
) -> Duration {
    let x = numbers(cin * rows * width);
    let bytes = weights(stored, cout * cin * kernel * kernel);
    let padding = kernel / 2;
    let size = |size: usize| (size + 2 * padding - kernel) / stride + 1;
    let mut out = numbers(cout * size(rows) * size(width));
    let conv = Conv2d {
        weight: Matrix {
            stored,
            bytes: bytes.bytes(),
            rows: cout,
            cols: cin * kernel * kernel,
            scales: None,
        },
        bias: None,
        kernel,
        stride,
        padding,
        upsample: false,
        input: None,
    };
    let (from, to) = (MapRows::whole(rows), MapRows::whole(size(rows)));
    clock.time(|| conv2d(&conv, &x, from, width, precision, None, &mut out, to))
}

fn time_attention(
    clock: Clock,
    precision: Precision,
    [tq, tk, heads, kv_heads, d]: [usize; 5],
) -> Duration {
    let (q, k, v) = (
        numbers(tq * heads * d),
        numbers(tk * kv_heads * d),
        numbers(tk * kv_heads * d),
    );
    let mut out = numbers(tq * heads * d);
    let spec = Attention {
        heads,
        kv_heads,
        head_dim: d,
        scale: 1.0 / (d as f32).sqrt(),
        mask: Mask::None,
        precision,
    };
    clock.time(|| {
        attention(
            &spec,
            Rows::new(&q, tq, heads * d),
            Rows::new(&k, tk, kv_heads * d),
            Rows::new(&v, tk, kv_heads * d),
            RowsMut::new(&mut out, tq, heads * d),
        );
    })
}
