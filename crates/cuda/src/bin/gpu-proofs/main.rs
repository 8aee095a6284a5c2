//! Proves on a GPU what the rest is built on: that a budget holds, that copies hide behind work and change no bit, that
//! memory goes back, that a worker can be replaced. Prints one table; ends with 1 where a proof fails, and with 0 where
//! none does, skipped ones included.
//!
//!     gpu-proofs [DEVICE]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

mod budget;
mod idle;
mod latency;
mod links;
mod restart;
mod sizes;
mod streaming;
mod table;

use lowtide_cuda::telemetry::Telemetry;
use lowtide_cuda::{DeviceInfo, Error, Gpu, HostMemory, devices, driver_version, self_test};
use sizes::Sizes;
use std::process::ExitCode;
use table::{Outcome, Table, mib};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == restart::CHILD => {
            match restart::child(rest, &mut std::io::stdout()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Some((first, [])) => match first.parse() {
            Ok(ordinal) => prove(ordinal),
            Err(_) => usage(),
        },
        None => prove(0),
        Some(_) => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: gpu-proofs [DEVICE], where DEVICE is a number from 0");
    ExitCode::from(2)
}

fn prove(ordinal: usize) -> ExitCode {
    let mut table = Table::default();
    match find(ordinal) {
        Ok(device) => all(&mut table, &device),
        Err(error) => nothing(&mut table, &error),
    }
    print!("{}", table.text());
    if table.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn find(ordinal: usize) -> Result<DeviceInfo, Error> {
    let devices = devices()?;
    let count = devices.len();
    devices
        .into_iter()
        .nth(ordinal)
        .ok_or(Error::NoDevice { ordinal, count })
}

/// Every proof, said to be skipped.
fn nothing(table: &mut Table, error: &Error) {
    for (proof, what) in [
        ('a', "the budget holds"),
        ('b', "copies hide behind work"),
        ('c', "memory goes back"),
        ('d', "small copies behind large ones"),
        ('e', "slots are refilled in place"),
        ('f', "a worker is replaced"),
        ('r', "rates"),
    ] {
        table.run(proof, what, |_| Err(error.clone()));
    }
}

fn all(table: &mut Table, device: &DeviceInfo) {
    let ordinal = device.ordinal;
    let sizes = Sizes::here(device.free);
    let before = Telemetry::open(&device.pci).and_then(|t| t.memory()).ok();
    say(device, &sizes);
    // Before this process has a context, which its children's memory would be hard to tell from.
    table.run('f', "a worker is replaced", |table| {
        restart::prove(table, ordinal, &device.pci, sizes.cache)
    });
    table.run('a', "the self-test", |table| {
        self_test(&Gpu::open(ordinal, 64 << 20)?)?;
        table.demand('a', "the self-test", true, "sums are right");
        Ok(())
    });
    table.run('c', "memory goes back", |table| {
        idle::prove(table, ordinal, &sizes, before)
    });
    table.run('a', "the budget holds", |table| {
        budget::prove(table, ordinal)
    });
    table.run('b', "copies hide behind work", |table| {
        streaming::prove(table, ordinal, &sizes)
    });
    table.run('e', "slots are refilled in place", |table| {
        streaming::prove_views(table, ordinal, &sizes)
    });
    table.run('d', "small copies behind large ones", |table| {
        latency::prove(table, ordinal, &sizes)
    });
    table.run('r', "rates", |table| links::measure(table, ordinal, &sizes));
    table.run('r', "a large model back from pinned memory", |table| {
        links::restore(table, ordinal, &sizes)
    });
    activity(table, device);
}

fn say(device: &DeviceInfo, sizes: &Sizes) {
    let room = HostMemory::read().room(0);
    println!(
        "{} ({}), compute {}.{}, {} processors, {} of {} free; driver speaks {}; {} of host memory may be pinned ({}); {sizes:?}",
        device.name,
        device.pci,
        device.compute.0,
        device.compute.1,
        device.processors,
        mib(device.free),
        mib(device.total),
        driver_version().unwrap_or(0),
        mib(room.bytes),
        room.because,
    );
}

/// What the management library says at the end, when the device is still warm.
fn activity(table: &mut Table, device: &DeviceInfo) {
    let activity = Telemetry::open(&device.pci).and_then(|t| t.activity());
    match activity {
        Ok(activity) => table.add('r', "telemetry", Outcome::Measured, format!("{activity:?}")),
        Err(unknown) => table.add('r', "telemetry", Outcome::Skipped, unknown.to_string()),
    }
}
