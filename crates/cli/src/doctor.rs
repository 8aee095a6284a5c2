//! `lowtide doctor`: what this machine has, what is used of it, and what is missing and why.

use crate::args::DoctorArgs;
use crate::console::{self, Table};
use crate::failure::Failure;
use lowtide_core::Bytes;
use lowtide_engine::device::memory::Memory;
use lowtide_engine::device::{cpu, cuda};
use lowtide_kernels as kernels;
use serde_json::{Value, json};

/// Something the program can or cannot do here.
struct Capability {
    name: &'static str,
    available: bool,
    /// With what, or why not.
    why: String,
}

/// Prints everything.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let isa = kernels::isa_from_env().map_err(Failure::Mistake)?;
    let memory = Memory::read();
    let capabilities = capabilities(memory.as_ref());
    let text = if args.json {
        format!("{}\n", json(isa, memory.as_ref(), &capabilities))
    } else {
        text(isa, memory.as_ref(), &capabilities)
    };
    Ok(console::print(&text)?)
}

fn capabilities(memory: Option<&Memory>) -> Vec<Capability> {
    let native = kernels::native_bf16();
    let linux = cfg!(target_os = "linux");
    let gpus = cuda::shown();
    let on_gpus = gpus.is_ok();
    vec![
        Capability {
            name: "text to image (Z-Image)",
            available: true,
            why: "weights streamed where they do not fit".to_owned(),
        },
        Capability {
            name: "NVIDIA GPUs",
            available: gpus.is_ok(),
            why: gpus.unwrap_or_else(|why| why),
        },
        Capability {
            name: "native bf16 products",
            available: native,
            why: if native {
                format!("{}; --precision auto means bf16 on it", kernels::isa())
            } else {
                format!(
                    "needs amx or avx512bf16, in use is {}; --precision auto means f32 on the processor",
                    kernels::isa()
                )
            },
        },
        Capability {
            name: "tf32 and f16 products",
            available: on_gpus,
            why: match on_gpus {
                true => "on GPUs; --precision auto means bf16 there".to_owned(),
                false => "of GPUs alone: --precision tf32 and f16 are refused here".to_owned(),
            },
        },
        Capability {
            name: "budget from free memory",
            available: memory.is_some(),
            why: match memory {
                Some(_) => "read from the system; --budget overrides it".to_owned(),
                None => "this system's figures cannot be read; give --budget".to_owned(),
            },
        },
        Capability {
            name: "freed memory returns at once",
            available: linux,
            why: if linux {
                "large buffers go straight back to the system".to_owned()
            } else {
                "set up for Linux only; elsewhere the system's allocator decides".to_owned()
            },
        },
        huge_pages(std::fs::read_to_string(HUGE_PAGES).ok().as_deref()),
    ]
}

/// What Linux says about huge pages: the setting in force is in brackets.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Whether large buffers lie in huge pages, by what [`HUGE_PAGES`] has.
fn huge_pages(setting: Option<&str>) -> Capability {
    let in_force = setting.and_then(|text| text.split('[').nth(1)?.split(']').next());
    let why = match in_force {
        Some("always" | "madvise") => {
            "weights and large activations lie in pages of 2 MiB".to_owned()
        }
        Some(other) => format!(
            "products of large matrices take up to a third longer: {HUGE_PAGES} says '{other}'; \
             write 'madvise' there as root"
        ),
        None => "this system does not say whether it has them".to_owned(),
    };
    Capability {
        name: "huge pages",
        available: matches!(in_force, Some("always" | "madvise")),
        why,
    }
}

fn text(isa: kernels::Isa, memory: Option<&Memory>, capabilities: &[Capability]) -> String {
    let mut table = Table::new(&[]);
    table.row(["device".to_owned(), format!("cpu: {}", cpu::name())]);
    table.row(["threads".to_owned(), kernels::threads().to_string()]);
    let unused = kernels::amx_refused().map(|why| format!("; amx is not used: {why}"));
    table.row([
        "instruction sets".to_owned(),
        format!(
            "{}; in use: {isa}{}",
            isa_names().join(", "),
            unused.unwrap_or_default()
        ),
    ]);
    match memory {
        Some(memory) => {
            table.row([
                "memory".to_owned(),
                format!("{} free of {}", memory.available, memory.total),
            ]);
            for limit in &memory.limits {
                table.row([
                    "limit".to_owned(),
                    format!("{} free of {}, {}", limit.free, limit.limit, limit.what),
                ]);
            }
            table.row([
                "usable".to_owned(),
                format!(
                    "{}, of which {} are left to others (--reserve)",
                    memory.free(),
                    memory.reserve_default()
                ),
            ]);
        }
        None => table.row(["memory", "unknown on this system; give --budget"]),
    }
    table.row(["version".to_owned(), version()]);
    let mut text = table.text();
    text.push('\n');
    let mut table = Table::new(&[]);
    for capability in capabilities {
        let verdict = if capability.available { "yes" } else { "no" };
        table.row([capability.name, verdict, &capability.why]);
    }
    text.push_str(&table.text());
    text
}

fn json(isa: kernels::Isa, memory: Option<&Memory>, capabilities: &[Capability]) -> Value {
    let bytes = |bytes: Bytes| Value::from(bytes.0);
    let memory = memory.map(|memory| {
        let limits: Vec<Value> = memory
            .limits
            .iter()
            .map(|limit| json!({ "what": limit.what, "limit": bytes(limit.limit), "free": bytes(limit.free) }))
            .collect();
        json!({
            "total": bytes(memory.total), "available": bytes(memory.available),
            "usable": bytes(memory.free()), "limits": limits,
        })
    });
    let capabilities: Vec<Value> = capabilities
        .iter()
        .map(|capability| json!({ "name": capability.name, "available": capability.available, "why": capability.why }))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "devices": [{
            "name": "cpu", "processor": cpu::name(), "threads": kernels::threads(),
            "instruction_sets": isa_names(), "instruction_set": isa.name(), "native_bf16": kernels::native_bf16(),
        }],
        "memory": memory,
        "capabilities": capabilities,
    })
}

fn isa_names() -> Vec<&'static str> {
    kernels::available_isas()
        .into_iter()
        .map(kernels::Isa::name)
        .collect()
}

fn version() -> String {
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    format!(
        "lowtide {} for {} on {}, {build} build",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    )
}

#[cfg(test)]
mod tests {
    use super::huge_pages;

    #[test]
    fn the_setting_of_huge_pages_is_the_word_in_brackets() {
        for (setting, available) in [
            (Some("always [madvise] never\n"), true),
            (Some("[always] madvise never\n"), true),
            (Some("always madvise [never]\n"), false),
            (Some("nonsense"), false),
            (None, false),
        ] {
            assert_eq!(huge_pages(setting).available, available, "{setting:?}");
        }
        assert!(
            huge_pages(Some("always madvise [never]"))
                .why
                .contains("says 'never'")
        );
    }
}
