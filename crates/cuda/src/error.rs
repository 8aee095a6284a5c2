//! What can go wrong with a GPU, told apart by what the caller can do about it.

use cudarc::driver::sys::CUresult;

/// Why a GPU did not do what it was asked.
///
/// Three kinds want different answers: a request that was refused ([`Error::is_out_of_memory`]) leaves everything as it
/// was and may be made smaller; a poisoned context ([`Error::is_poisoned`]) answers nothing any more until the process
/// has ended; the rest is said once and ends the job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no driver to speak to.
    #[error(
        "there is no NVIDIA driver to use: {reason}; install the driver, or compute on the CPU with --device cpu"
    )]
    NoDriver {
        /// What was missing, or what the driver said when it was started.
        reason: String,
    },
    /// There is a driver, but not that device.
    #[error(
        "there is no GPU {ordinal}: the driver shows {count}; look at nvidia-smi and at CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// The device asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device or its driver lacks something without which nothing here works.
    #[error("GPU '{device}' cannot be used: {reason}")]
    Unsuitable {
        /// The device's name.
        device: String,
        /// What is missing, and what would help.
        reason: String,
    },
    /// The budget refuses a request. Nothing has changed.
    #[error(
        "{} more do not fit into the GPU budget of {}, of which {} are in use; free something, raise the budget, or use a smaller plan",
        exact(*asked), mib(*budget), mib(*used)
    )]
    OutOfMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes in use.
        used: u64,
        /// The most there may be in use.
        budget: u64,
    },
    /// The budget has room, but the device has not: other programs use it. Nothing has changed.
    #[error(
        "the GPU has no {} left ({} are free) although the budget has room; other programs use it: close them or lower the budget",
        mib(*asked), mib(*free)
    )]
    DriverOutOfMemory {
        /// What was being made.
        what: &'static str,
        /// Bytes asked for; 0 where the driver alone knows.
        asked: u64,
        /// Bytes that the driver says are free.
        free: u64,
    },
    /// The context is lost, with everything in it: every later call gives the same error.
    #[error(
        "the GPU stopped with {name} ({code}) in {what}; nothing in this process can use it any more: end the process and start it anew"
    )]
    Poisoned {
        /// What was being done when it was noticed, which may be later than when it happened.
        what: &'static str,
        /// The driver's number.
        code: u32,
        /// The driver's name for it.
        name: String,
    },
    /// The driver refused a call for another reason.
    #[error("the GPU driver refused {what}: {name} ({code})")]
    Driver {
        /// What was being done.
        what: &'static str,
        /// The driver's number.
        code: u32,
        /// The driver's name for it.
        name: String,
    },
    /// cuBLASLt refused a call.
    #[error("cuBLASLt refused {what} with status {code}; the own kernels need none of it")]
    Cublas {
        /// What was being done.
        what: &'static str,
        /// The library's number.
        code: i32,
    },
    /// There is no such kernel in what was built in or installed.
    #[error(
        "there is no GPU kernel '{name}' in this program; build it with scripts/build-cuda, which compiles them"
    )]
    MissingKernel {
        /// The kernel's name.
        name: String,
    },
    /// More host memory would be page-locked than may be.
    #[error(
        "{} may not be page-locked: {} may, because of {reason}; keep less in host memory, or raise that limit",
        mib(*asked), mib(*limit)
    )]
    PinLimit {
        /// Bytes asked for.
        asked: u64,
        /// Bytes that may be.
        limit: u64,
        /// What sets the limit.
        reason: String,
    },
    /// The operating system refused something.
    #[error("{what} failed: {reason}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        reason: String,
    },
    /// Kernels run, and compute something else than they should.
    #[error(
        "GPU '{device}' computes wrong results: {reason}; update the driver, or build the kernels for this GPU with scripts/build-cuda"
    )]
    SelfTest {
        /// The device's name.
        device: String,
        /// What was expected and what came.
        reason: String,
    },
}

impl Error {
    /// Whether memory was refused, by the budget or by the device: less may be asked for.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(
            self,
            Error::OutOfMemory { .. } | Error::DriverOutOfMemory { .. }
        )
    }

    /// Whether the context is lost: only a new process helps.
    pub fn is_poisoned(&self) -> bool {
        matches!(self, Error::Poisoned { .. })
    }

    /// Whether there is simply no GPU here, so that a test or a proof is skipped and not failed.
    pub fn is_absent(&self) -> bool {
        matches!(self, Error::NoDriver { .. } | Error::NoDevice { .. })
    }

    /// What the last error of the operating system says about `what`.
    #[cfg(any(unix, test))]
    pub(crate) fn host(what: &'static str) -> Error {
        Error::host_of(what, &std::io::Error::last_os_error())
    }

    #[cfg(any(unix, test))]
    pub(crate) fn host_of(what: &'static str, error: &std::io::Error) -> Error {
        Error::Host {
            what,
            reason: error.to_string(),
        }
    }

    /// Sorts what the driver answered to a call that asked for no memory of ours.
    pub(crate) fn of_driver(what: &'static str, answer: CUresult) -> Error {
        let code = answer as u32;
        let name = format!("{answer:?}");
        match kind(code) {
            Kind::Poisoned => Error::Poisoned { what, code, name },
            Kind::OutOfMemory => Error::DriverOutOfMemory {
                what,
                asked: 0,
                free: 0,
            },
            Kind::Other => Error::Driver { what, code, name },
        }
    }
}

/// What a number of the driver means to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Poisoned,
    OutOfMemory,
    Other,
}

/// Errors that stay with a context. 4: the driver shuts down. 46: the device is taken. 214, 220: memory or link beyond
/// repair. 700, 702, 710, 714 to 719: a kernel did what it must not. 709: somebody destroyed the context. 721: memory of
/// the tensor cores was left behind. 810: the server that shares the device died. 911: another device failed. 999 says
/// nothing, and what says nothing is not trusted.
const POISONOUS: [u32; 18] = [
    4, 46, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999,
];

fn kind(code: u32) -> Kind {
    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32 {
        Kind::OutOfMemory
    } else if POISONOUS.contains(&code) {
        Kind::Poisoned
    } else {
        Kind::Other
    }
}

/// Bytes as people read them.
pub(crate) fn mib(bytes: u64) -> String {
    if bytes >= 1 << 20 {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    } else {
        format!("{bytes} bytes")
    }
}

/// The same for what was asked for, where a byte may be the one too many.
fn exact(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) || bytes < 1 << 20 {
        mib(bytes)
    } else {
        format!("{bytes} bytes ({})", mib(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_helps() {
        let sort = |answer| Error::of_driver("a test", answer);
        assert!(sort(CUresult::CUDA_ERROR_OUT_OF_MEMORY).is_out_of_memory());
        for sticky in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_ASSERT,
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
            CUresult::CUDA_ERROR_UNKNOWN,
        ] {
            assert!(sort(sticky).is_poisoned(), "{sticky:?}");
            assert!(!sort(sticky).is_out_of_memory(), "{sticky:?}");
        }
        for passing in [
            CUresult::CUDA_ERROR_INVALID_VALUE,
            CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            CUresult::CUDA_ERROR_NOT_FOUND,
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
        ] {
            assert!(
                !sort(passing).is_poisoned() && !sort(passing).is_out_of_memory(),
                "{passing:?}"
            );
        }
    }

    #[test]
    fn messages_have_numbers_and_advice() {
        let refused = Error::OutOfMemory {
            asked: 3 << 20,
            used: 7 << 20,
            budget: 8 << 20,
        };
        let text = refused.to_string();
        for part in ["3.0 MiB", "7.0 MiB", "8.0 MiB", "smaller plan"] {
            assert!(text.contains(part), "{text}");
        }
        let poisoned = Error::of_driver("a launch", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        let text = poisoned.to_string();
        for part in [
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "700",
            "a launch",
            "start it anew",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(mib(17), "17 bytes");
        assert_eq!(exact((1 << 20) + 1), "1048577 bytes (1.0 MiB)");
    }

    #[test]
    fn absence_is_told_from_failure() {
        assert!(
            Error::NoDriver {
                reason: "none".to_owned()
            }
            .is_absent()
        );
        assert!(
            Error::NoDevice {
                ordinal: 1,
                count: 0
            }
            .is_absent()
        );
        assert!(!Error::host("a test").is_absent());
    }
}
