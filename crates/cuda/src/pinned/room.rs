//! How much memory may be page-locked. What is locked is lost to everybody else on the machine, and a machine without
//! memory ends programs; so the figures are read, and the rule is a function of them.

use crate::error::Error;

/// Limits on locked memory up to this say nothing about us: systems set them for every user. NVIDIA's driver does not
/// count against them; a higher one was set by somebody who meant it.
const LOCKED_MEANT_MIN: u64 = 64 << 20;

/// What a machine has, in bytes. `None`: not known, or no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: Option<u64>,
    /// What new work can have without pushing anything out.
    pub available: Option<u64>,
    /// What the control group of this process may still take.
    pub group: Option<u64>,
    /// The most that may be locked (`ulimit -l`).
    pub locked: Option<u64>,
}

/// What may be page-locked on top of what is, and why not more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// What sets the limit.
    pub because: &'static str,
}

impl Room {
    /// Refuses more than there is room for.
    pub fn admit(&self, asked: u64) -> Result<(), Error> {
        if asked > self.bytes {
            return Err(Error::PinLimit {
                asked,
                limit: self.bytes,
                reason: self.because.to_owned(),
            });
        }
        Ok(())
    }
}

impl HostMemory {
    /// Left to everybody else, at least: a sixteenth of the machine, between half a GiB and four.
    pub fn reserve(&self) -> u64 {
        (self.total.unwrap_or(0) / 16).clamp(512 << 20, 4 << 30)
    }

    /// How much more may be locked by a process that has locked `pinned` bytes: all in all not over half of the machine
    /// nor the limit on locked memory; and no more than the machine and the control group have free, less a reserve.
    pub fn room(&self, pinned: u64) -> Room {
        let reserve = self.reserve();
        let locked = self.locked.filter(|limit| *limit > LOCKED_MEANT_MIN);
        let limits = [
            (
                self.total.map(|total| (total / 2).saturating_sub(pinned)),
                "half of the machine's memory",
            ),
            (
                self.available.map(|free| free.saturating_sub(reserve)),
                "the machine's free memory less a reserve",
            ),
            (
                self.group.map(|free| free.saturating_sub(reserve)),
                "the memory limit of the container or control group less a reserve",
            ),
            (
                locked.map(|limit| limit.saturating_sub(pinned)),
                "the limit on locked memory (ulimit -l)",
            ),
        ];
        limits
            .into_iter()
            .filter_map(|(bytes, because)| bytes.map(|bytes| Room { bytes, because }))
            .min_by_key(|room| room.bytes)
            .unwrap_or(Room {
                bytes: 0,
                because: "this system does not say how much memory it has",
            })
    }

    /// Asks the system.
    pub fn read() -> HostMemory {
        let meminfo = read("/proc/meminfo");
        HostMemory {
            total: meminfo_bytes(&meminfo, "MemTotal:"),
            available: meminfo_bytes(&meminfo, "MemAvailable:"),
            group: group_free(),
            locked: locked_limit(),
        }
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A line of `/proc/meminfo`, which counts in KiB.
fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    number.checked_mul(1024)
}

/// The least that the groups this process is in, from its own up to the first, leave it.
fn group_free() -> Option<u64> {
    let groups = read("/proc/self/cgroup");
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut path = format!("/sys/fs/cgroup{}", own.trim_end_matches('/'));
    let mut least = None;
    while path.starts_with("/sys/fs/cgroup") {
        let file = |name: &str| read(&format!("{path}/{name}"));
        let free = group_room(
            &file("memory.max"),
            &file("memory.current"),
            &file("memory.stat"),
        );
        least = match (least, free) {
            (Some(a), Some(b)) => Some(std::cmp::min::<u64>(a, b)),
            (a, b) => a.or(b),
        };
        let end = path.rfind('/').unwrap_or(0);
        path.truncate(end);
    }
    least
}

/// What a group leaves: its limit less what it uses, where files that were read and not looked at since do not count:
/// they go when somebody needs the room.
fn group_room(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let files = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(files)))
}

#[cfg(unix)]
fn locked_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the type the call fills.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "the type differs between systems"
    )]
    let bytes = limit.rlim_cur as u64;
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(bytes)
}

#[cfg(not(unix))]
fn locked_limit() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine() -> HostMemory {
        HostMemory {
            total: Some(64 * GIB),
            available: Some(50 * GIB),
            group: None,
            locked: None,
        }
    }

    #[test]
    fn the_smallest_limit_holds_and_is_named() {
        let half = machine().room(0);
        assert_eq!(half.bytes, 32 * GIB);
        assert!(half.because.contains("half"), "{half:?}");
        assert_eq!(machine().room(30 * GIB).bytes, 2 * GIB);
        assert_eq!(machine().room(40 * GIB).bytes, 0);

        let busy = HostMemory {
            available: Some(10 * GIB),
            ..machine()
        };
        assert_eq!(busy.room(0).bytes, 6 * GIB);
        assert!(busy.room(0).because.contains("free"));

        let contained = HostMemory {
            group: Some(5 * GIB),
            ..machine()
        };
        assert_eq!(contained.room(0).bytes, GIB);
        assert!(contained.room(0).because.contains("container"));

        let locked = HostMemory {
            locked: Some(3 * GIB),
            ..machine()
        };
        assert_eq!(locked.room(GIB).bytes, 2 * GIB);
        assert!(locked.room(GIB).because.contains("ulimit"));
    }

    #[test]
    fn limits_that_every_user_has_are_not_meant() {
        for usual in [64 << 10, 8 << 20, 64 << 20] {
            let usual = HostMemory {
                locked: Some(usual),
                ..machine()
            };
            assert_eq!(usual.room(0).bytes, 32 * GIB);
        }
    }

    #[test]
    fn an_unknown_machine_locks_nothing() {
        let room = HostMemory::default().room(0);
        assert_eq!(room.bytes, 0);
        let error = room.admit(1).unwrap_err().to_string();
        assert!(error.contains("does not say"), "{error}");
        assert_eq!(room.admit(0), Ok(()));
    }

    #[test]
    fn the_reserve_grows_with_the_machine_up_to_a_point() {
        let of = |total| HostMemory {
            total: Some(total),
            ..HostMemory::default()
        };
        assert_eq!(of(2 * GIB).reserve(), GIB / 2);
        assert_eq!(of(32 * GIB).reserve(), 2 * GIB);
        assert_eq!(of(512 * GIB).reserve(), 4 * GIB);
    }

    #[test]
    fn figures_are_read_as_linux_writes_them() {
        let text = "MemTotal:       65842804 kB\nMemFree:  1 kB\nMemAvailable:   61000000 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal:"), Some(65_842_804 * 1024));
        assert_eq!(
            meminfo_bytes(text, "MemAvailable:"),
            Some(61_000_000 * 1024)
        );
        assert_eq!(meminfo_bytes(text, "Nothing:"), None);
        let stat = "anon 5\ninactive_file 30\nactive_file 9\n";
        assert_eq!(group_room("100\n", "80\n", stat), Some(50));
        assert_eq!(group_room("100\n", "80\n", ""), Some(20));
        assert_eq!(group_room("max\n", "80\n", stat), None);
        assert_eq!(group_room("", "", ""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_machine_says_what_it_has() {
        let memory = HostMemory::read();
        assert!(memory.total.is_some_and(|total| total > 1 << 20));
        assert!(memory.available.is_some());
    }
}
