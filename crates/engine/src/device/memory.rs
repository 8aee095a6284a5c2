//! How much memory this machine has for us: the system's own figure, and every limit set on the process.

use lowtide_core::Bytes;
use std::path::{Path, PathBuf};

/// The share of the memory that is left to others, as a divisor.
const RESERVE_DIVISOR: u64 = 16;
/// The largest reserve that is chosen without being asked for: a desktop and its browser tabs already count as used.
const RESERVE_MAX: Bytes = Bytes::gib(1);

/// A limit some administrator or container set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Who set it: `cgroup /a/b`, `data segment (ulimit -d)`.
    pub what: String,
    /// The most.
    pub limit: Bytes,
    /// What is left of it.
    pub free: Bytes,
}

/// The memory of the machine as this process may use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Built in.
    pub total: Bytes,
    /// What the system could hand out without swapping.
    pub available: Bytes,
    /// What else bounds us.
    pub limits: Vec<Limit>,
}

/// What is left to others of so much memory, unless the user says how much.
pub fn reserve_of(all: Bytes) -> Bytes {
    Bytes(all.0 / RESERVE_DIVISOR).min(RESERVE_MAX)
}

impl Memory {
    /// The present state, or `None` on systems whose figures this program does not know how to read.
    pub fn read() -> Option<Memory> {
        Memory::read_under(Path::new("/"))
    }

    /// What can be used before anybody is short of memory or this process is stopped.
    pub fn free(&self) -> Bytes {
        self.limits
            .iter()
            .map(|limit| limit.free)
            .chain([self.available])
            .min()
            .expect("chain adds one")
    }

    /// What is left to others unless the user says how much: a share of what there is, since a small container has
    /// few others in it.
    pub fn reserve_default(&self) -> Bytes {
        let all = self
            .limits
            .iter()
            .map(|limit| limit.limit)
            .chain([self.total])
            .min()
            .expect("chain adds one");
        reserve_of(all)
    }

    /// As [`Memory::read`], with another folder for `/`.
    fn read_under(root: &Path) -> Option<Memory> {
        let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
        let total = Bytes::kib(field(&meminfo, "MemTotal:")?);
        let available = Bytes::kib(field(&meminfo, "MemAvailable:")?);
        let mut limits = cgroup_limits(root);
        limits.extend(process_limits(root));
        Some(Memory {
            total,
            available,
            limits,
        })
    }
}

/// The first number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(name)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    })
}

/// The limits of this process' control group and of those above it; each holds for all in it together.
fn cgroup_limits(root: &Path) -> Vec<Limit> {
    let Ok(membership) = std::fs::read_to_string(root.join("proc/self/cgroup")) else {
        return Vec::new();
    };
    let mut limits = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (mount, names) = if controllers.is_empty() {
            (root.join("sys/fs/cgroup"), &VERSION_2)
        } else if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            (root.join("sys/fs/cgroup/memory"), &VERSION_1)
        } else {
            continue;
        };
        // A container sees its own group as the root of the mount and may be told a path that only exists outside.
        for group in Path::new(group).ancestors() {
            let folder: PathBuf = mount.join(group.strip_prefix("/").unwrap_or(group));
            limits.extend(names.limit(&folder, group));
        }
    }
    limits.dedup_by(|a, b| a.limit == b.limit && a.free == b.free);
    limits
}

/// The files in which a version of control groups keeps its figures.
struct CgroupFiles {
    max: &'static str,
    used: &'static str,
    inactive_file: &'static str,
    active_file: &'static str,
}

const VERSION_2: CgroupFiles = CgroupFiles {
    max: "memory.max",
    used: "memory.current",
    inactive_file: "inactive_file ",
    active_file: "active_file ",
};

const VERSION_1: CgroupFiles = CgroupFiles {
    max: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file ",
    active_file: "total_active_file ",
};

/// Version 1 says "no limit" with the largest multiple of a page below 2^63.
const NO_LIMIT_MIN: u64 = 1 << 62;

impl CgroupFiles {
    fn limit(&self, folder: &Path, group: &Path) -> Option<Limit> {
        let number = |name: &str| -> Option<u64> {
            std::fs::read_to_string(folder.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let limit = number(self.max).filter(|&max| max < NO_LIMIT_MIN)?;
        let used = number(self.used)?;
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        // Cached files count as used, but are given up before anybody is refused.
        let cached = field(&stat, self.inactive_file).unwrap_or(0)
            + field(&stat, self.active_file).unwrap_or(0);
        let free = limit.saturating_sub(used.saturating_sub(cached));
        Some(Limit {
            what: format!("cgroup {}", group.display()),
            limit: Bytes(limit),
            free: Bytes(free),
        })
    }
}

/// The soft limits of the process on its heap and its address space.
fn process_limits(root: &Path) -> Vec<Limit> {
    let read =
        |name: &str| std::fs::read_to_string(root.join("proc/self").join(name)).unwrap_or_default();
    let (limits, status) = (read("limits"), read("status"));
    [
        ("Max data size", "VmData:", "data segment (ulimit -d)"),
        ("Max address space", "VmSize:", "address space (ulimit -v)"),
    ]
    .into_iter()
    .filter_map(|(name, used, what)| {
        // A line without a number is one that says "unlimited".
        let limit = field(&limits, name)?;
        let used = field(&status, used).unwrap_or(0) * 1024;
        Some(Limit {
            what: what.to_owned(),
            limit: Bytes(limit),
            free: Bytes(limit.saturating_sub(used)),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> Memory {
        let root = tempfile::tempdir().unwrap();
        let all = [(
            "proc/meminfo",
            "MemTotal:  1048576 kB\nMemFree: 1 kB\nMemAvailable:  524288 kB\n",
        )];
        for (path, text) in all.iter().chain(files) {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Memory::read_under(root.path()).unwrap()
    }

    #[test]
    fn a_machine_without_limits_has_what_the_system_says() {
        let memory = machine(&[(
            "proc/self/limits",
            "Max data size  unlimited  unlimited  bytes\n",
        )]);
        assert_eq!(memory.total, Bytes::gib(1));
        assert_eq!(memory.free(), Bytes::mib(512));
        assert_eq!(memory.limits, []);
        assert_eq!(memory.reserve_default(), Bytes::mib(64));
    }

    #[test]
    fn the_tightest_group_above_us_counts_and_cached_files_do_not() {
        let memory = machine(&[
            ("proc/self/cgroup", "0::/pod/box\n"),
            ("sys/fs/cgroup/pod/memory.max", "104857600\n"),
            ("sys/fs/cgroup/pod/memory.current", "94371840\n"),
            (
                "sys/fs/cgroup/pod/memory.stat",
                "anon 1\ninactive_file 31457280\nactive_file 10485760\n",
            ),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/box/memory.current", "1\n"),
        ]);
        assert_eq!(memory.free(), Bytes::mib(50));
        assert_eq!(memory.limits[0].what, "cgroup /pod");
    }

    #[test]
    fn the_older_groups_are_read_too() {
        let memory = machine(&[
            ("proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n"),
            (
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                "104857600\n",
            ),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "52428800\n"),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "52428800\n"),
        ]);
        assert_eq!(memory.free(), Bytes::mib(50));
        assert_eq!(memory.limits.len(), 1);
    }

    #[test]
    fn a_limit_on_the_heap_counts() {
        let memory = machine(&[
            (
                "proc/self/limits",
                "Max data size             104857600            unlimited            bytes\n",
            ),
            ("proc/self/status", "Name: x\nVmData:\t   1024 kB\n"),
        ]);
        assert_eq!(memory.free(), Bytes::mib(99));
        assert_eq!(memory.reserve_default(), Bytes::kib(6400));
    }
}
