//! `--device`: what pipelines of this process compute on.

use std::path::{Path, PathBuf};

use lowtide_core::Bytes;
use lowtide_engine::PrecisionChoice;
use lowtide_engine::device::{cuda, ground};

use crate::failure::Failure;

/// What `--device` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// The first GPU where this build knows GPUs and one is there, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU, by its number as the driver counts.
    Cuda(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        match text {
            "auto" => return Ok(DeviceChoice::Auto),
            "cpu" => return Ok(DeviceChoice::Cpu),
            "cuda" => return Ok(DeviceChoice::Cuda(0)),
            _ => {}
        }
        text.strip_prefix("cuda:")
            .and_then(|number| number.parse().ok())
            .map(DeviceChoice::Cuda)
            .ok_or_else(|| format!("'{text}' is no device; say auto, cpu or cuda:0"))
    }
}

/// The devices of a service, each with a worker of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Devices(Vec<DeviceChoice>);

impl Default for Devices {
    fn default() -> Devices {
        Devices(vec![DeviceChoice::Auto])
    }
}

impl std::str::FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Devices, String> {
        let devices: Vec<DeviceChoice> = text
            .split(',')
            .map(|one| one.trim().parse())
            .collect::<Result<_, _>>()?;
        let twice = (1..devices.len()).find(|&i| devices[..i].contains(&devices[i]));
        match twice {
            Some(i) => Err(format!("{} is there twice", devices[i])),
            None => Ok(Devices(devices)),
        }
    }
}

impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.0.iter().map(DeviceChoice::to_string).collect();
        f.write_str(&names.join(", "))
    }
}

impl Devices {
    /// Whether the processor is all there is, as far as this process can know.
    pub(crate) fn is_processor(&self) -> bool {
        let knows_one = cuda::absent().is_none();
        let mut devices = self.0.iter();
        devices.all(|device| match device {
            DeviceChoice::Cpu => true,
            DeviceChoice::Auto => !knows_one,
            DeviceChoice::Cuda(_) => false,
        })
    }

    /// The first one, for a process that has one.
    pub(crate) fn first(&self) -> DeviceChoice {
        self.0.first().copied().unwrap_or_default()
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[DeviceChoice] {
        &self.0
    }

    /// What each worker is told: one a device, and where nobody named any, one for each GPU.
    pub(crate) fn workers(&self) -> Vec<String> {
        let gpus = match self.0 == [DeviceChoice::Auto] {
            true => cuda::ordinals(),
            false => Vec::new(),
        };
        match gpus.is_empty() {
            true => self.0.iter().map(DeviceChoice::to_string).collect(),
            false => gpus.iter().map(|gpu| format!("cuda:{gpu}")).collect(),
        }
    }

    /// The program that lies beside this one and knows GPUs, where they may be wanted and this one knows none.
    pub(crate) fn sibling(&self, program: &Path) -> Option<PathBuf> {
        if cfg!(feature = "cuda") || self.0 == [DeviceChoice::Cpu] {
            return None;
        }
        let sibling =
            program.with_file_name(format!("lowtide-cuda{}", std::env::consts::EXE_SUFFIX));
        sibling.is_file().then_some(sibling)
    }
}

/// The memory of what was chosen, where that is a GPU.
pub(crate) fn total(choice: DeviceChoice) -> Option<Bytes> {
    match choice {
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto => cuda::total(0),
        DeviceChoice::Cuda(ordinal) => cuda::total(ordinal),
    }
}

/// Refuses a precision that only GPUs have where the processor computes.
///
/// # Errors
/// In words that follow the name of the option.
pub(crate) fn check_precision(
    choice: DeviceChoice,
    precision: PrecisionChoice,
) -> Result<(), String> {
    let no_gpu = match choice {
        DeviceChoice::Cuda(_) => return Ok(()),
        DeviceChoice::Cpu => None,
        DeviceChoice::Auto => match cuda::absent() {
            None => return Ok(()),
            why => why,
        },
    };
    match (precision.refused_by_processors(), no_gpu) {
        (None, _) => Ok(()),
        (Some(problem), None) => Err(problem),
        (Some(problem), Some(why)) => Err(format!("{problem} (no GPU is used: {why})")),
    }
}

/// Makes pipelines of this process compute on what was chosen. Must come before a model is opened.
///
/// # Errors
/// When a GPU was asked for by its number and cannot be used.
pub(crate) fn put(
    choice: DeviceChoice,
    (budget, reserve): (Option<Bytes>, Option<Bytes>),
) -> Result<(), Failure> {
    let ordinal = match choice {
        DeviceChoice::Cpu => return Ok(()),
        DeviceChoice::Auto if cuda::absent().is_some() => return Ok(()),
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(ordinal) => ordinal,
    };
    let opened = cuda::open(ordinal, budget, reserve)
        .map_err(|wrong| Failure::mistake(format!("--device cuda:{ordinal}: {wrong}")))?;
    if !ground::put(opened) {
        let problem = "another device is in use already (this is a bug)";
        return Err(Failure::mistake(format!(
            "--device cuda:{ordinal}: {problem}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        let read = |text: &str| text.parse::<DeviceChoice>();
        assert_eq!(read("auto"), Ok(DeviceChoice::Auto));
        assert_eq!(read("cpu"), Ok(DeviceChoice::Cpu));
        assert_eq!(read("cuda"), Ok(DeviceChoice::Cuda(0)));
        assert_eq!(read("cuda:3"), Ok(DeviceChoice::Cuda(3)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_only_gpus_have_is_refused_where_the_processor_computes() {
        for precision in PrecisionChoice::ALL {
            let of_gpus = matches!(precision, PrecisionChoice::Tf32 | PrecisionChoice::F16);
            let refused = check_precision(DeviceChoice::Cpu, precision);
            assert_eq!(refused.is_err(), of_gpus, "{precision:?}");
            assert_eq!(check_precision(DeviceChoice::Cuda(0), precision), Ok(()));
            let auto = check_precision(DeviceChoice::Auto, precision);
            match cuda::absent() {
                Some(why) if of_gpus => assert!(auto.expect_err("a refusal").contains(&why)),
                _ => assert_eq!(auto, Ok(())),
            }
        }
    }

    #[test]
    fn a_service_may_have_several_devices_each_once() {
        let workers = |text: &str| text.parse::<Devices>().map(|devices| devices.workers());
        let named = vec!["cuda:0".to_owned(), "cuda:2".to_owned(), "cpu".to_owned()];
        assert_eq!(workers("cuda:0, cuda:2,cpu"), Ok(named));
        assert_eq!(workers("cpu"), Ok(vec!["cpu".to_owned()]));
        assert!(workers("cuda:1,cuda:1").unwrap_err().contains("twice"));
        assert!(workers("cuda:0,").is_err());
    }

    #[test]
    fn a_program_that_knows_gpus_is_found_beside_this_one_unless_the_processor_is_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("lowtide");
        let devices = |text: &str| text.parse::<Devices>().expect("devices");
        assert_eq!(devices("auto").sibling(&program), None);
        let name = format!("lowtide-cuda{}", std::env::consts::EXE_SUFFIX);
        let sibling = folder.path().join(name);
        std::fs::write(&sibling, "").expect("a file");
        let expected = (!cfg!(feature = "cuda")).then_some(sibling);
        assert_eq!(devices("auto").sibling(&program), expected);
        assert_eq!(devices("cuda:1").sibling(&program), expected);
        assert_eq!(devices("cpu").sibling(&program), None);
    }
}
