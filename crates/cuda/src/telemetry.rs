//! What NVIDIA's management library says of a device: who uses its memory, how busy and how warm it is.
//!
//! The library may be missing where the driver is there, and may know less of one device than of another; neither is an
//! error. Nothing here is planned with: what it calls used counts what our pool keeps for itself.

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::{Device, Nvml, error::NvmlError};
use std::fmt;
use std::sync::OnceLock;

/// Why nothing is known of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the NVIDIA management library says nothing of this GPU: {reason}")]
pub struct Unknown {
    /// What was missing.
    pub reason: String,
}

impl From<NvmlError> for Unknown {
    fn from(error: NvmlError) -> Unknown {
        Unknown {
            reason: error.to_string(),
        }
    }
}

/// A device's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// Free for anybody.
    pub free: u64,
    /// Used by somebody.
    pub used: u64,
}

/// What a device is doing. `None`: this device does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Activity {
    /// Percent of the last moment in which some kernel ran.
    pub busy: Option<u32>,
    /// Percent of the last moment in which its memory was read or written.
    pub memory_busy: Option<u32>,
    /// Watts.
    pub watts: Option<f64>,
    /// Degrees Celsius.
    pub celsius: Option<u32>,
}

/// A process that has a context on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number, as the outermost system counts: a container may know it by another.
    pub id: u32,
    /// Bytes it uses; `None` where the system does not tell.
    pub used: Option<u64>,
}

/// The library, asked about one device.
pub struct Telemetry {
    nvml: &'static Nvml,
    pci: String,
}

/// Opens the library once in a process. It stays: to open it takes longer than to ask it.
fn library() -> Result<&'static Nvml, Unknown> {
    static LIBRARY: OnceLock<Result<Nvml, Unknown>> = OnceLock::new();
    match LIBRARY.get_or_init(|| Nvml::init().map_err(Unknown::from)) {
        Ok(nvml) => Ok(nvml),
        Err(unknown) => Err(unknown.clone()),
    }
}

impl Telemetry {
    /// Finds a device by its place on the bus ([`crate::DeviceInfo::pci`]).
    pub fn open(pci: &str) -> Result<Telemetry, Unknown> {
        let telemetry = Telemetry {
            nvml: library()?,
            pci: pci.to_owned(),
        };
        telemetry.device()?;
        Ok(telemetry)
    }

    fn device(&self) -> Result<Device<'_>, Unknown> {
        Ok(self.nvml.device_by_pci_bus_id(self.pci.as_str())?)
    }

    /// Free and used memory.
    pub fn memory(&self) -> Result<Memory, Unknown> {
        let info = self.device()?.memory_info()?;
        Ok(Memory {
            total: info.total,
            free: info.free,
            used: info.used,
        })
    }

    /// How busy and how warm it is.
    pub fn activity(&self) -> Result<Activity, Unknown> {
        let device = self.device()?;
        let busy = device.utilization_rates().ok();
        Ok(Activity {
            busy: busy.as_ref().map(|rates| rates.gpu),
            memory_busy: busy.as_ref().map(|rates| rates.memory),
            watts: device.power_usage().ok().map(|mw| f64::from(mw) / 1000.0),
            celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        })
    }

    /// The processes that compute on it.
    pub fn processes(&self) -> Result<Vec<Process>, Unknown> {
        let processes = self.device()?.running_compute_processes()?;
        Ok(processes
            .into_iter()
            .map(|process| Process {
                id: process.pid,
                used: match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                },
            })
            .collect())
    }

    /// The driver's version, as its maker writes it.
    pub fn driver(&self) -> Result<String, Unknown> {
        Ok(self.nvml.sys_driver_version()?)
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("pci", &self.pci)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_is_a_value() {
        let Err(unknown) = Telemetry::open("0000:ff:1f.7") else {
            panic!("there is no such device");
        };
        assert!(unknown.to_string().contains("says nothing"), "{unknown}");
    }
}
