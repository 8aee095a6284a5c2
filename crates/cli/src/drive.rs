//! A run of one picture in this process, driven to its end.

use anyhow::Context;
use lowtide_engine::Error;
use lowtide_engine::processor::{Product, Run, Stepped};

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::{Look, Progress};

/// Steps until the picture is finished or somebody asks to stop. `failed`: what a step's error is to the user.
pub(crate) fn drive(
    mut run: Box<dyn Run>,
    mut progress: Progress,
    interrupt: &Interrupt,
    failed: impl Fn(Error) -> Failure,
) -> Result<Product, Failure> {
    loop {
        if let Err(stop) = interrupt.check() {
            progress.abandon();
            return Err(stop);
        }
        match run.step() {
            Ok(Stepped::Progress(step)) => {
                let budget = run.plan().map(|plan| plan.budget.total);
                progress.show(Look {
                    phase: step.phase,
                    done: step.done,
                    total: step.total,
                    seconds: step.elapsed.as_secs_f64(),
                    memory: budget.map(|budget| (step.memory, budget)),
                });
            }
            Ok(Stepped::Finished(mut products)) => {
                progress.abandon();
                let product = products.pop().flatten();
                return Ok(product.context("no picture came of it")?);
            }
            Err(failure) => {
                progress.abandon();
                return Err(failed(failure));
            }
        }
    }
}
