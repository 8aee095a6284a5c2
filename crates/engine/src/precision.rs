//! What products are multiplied in, as it is chosen, and what that means where they are computed.

use lowtide_kernels as kernels;
use lowtide_models::Precision;

use crate::device::ground;
use crate::{Error, Result};

/// What products are multiplied in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// Single precision.
    F32,
    /// Operands rounded to tf32, sums in single precision; of GPUs alone.
    Tf32,
    /// Operands rounded to bf16, sums in single precision.
    Bf16,
    /// Operands rounded to f16, where what is beyond its range becomes its largest number; sums in single precision. Of
    /// GPUs alone.
    F16,
    /// Bf16 on a GPU and where the processor multiplies it natively, else single precision.
    #[default]
    Auto,
}

impl PrecisionChoice {
    /// All choices.
    pub const ALL: [PrecisionChoice; 5] = [
        PrecisionChoice::Auto,
        PrecisionChoice::F32,
        PrecisionChoice::Tf32,
        PrecisionChoice::Bf16,
        PrecisionChoice::F16,
    ];

    /// As it is written in settings.
    pub fn name(self) -> &'static str {
        match self {
            PrecisionChoice::F32 => "f32",
            PrecisionChoice::Tf32 => "tf32",
            PrecisionChoice::Bf16 => "bf16",
            PrecisionChoice::F16 => "f16",
            PrecisionChoice::Auto => "auto",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<PrecisionChoice> {
        PrecisionChoice::ALL
            .into_iter()
            .find(|choice| choice.name() == name)
    }

    /// Why nothing can be computed in it on a processor, and what can; `None` where it can.
    pub fn refused_by_processors(self) -> Option<String> {
        (!self.here().is_of_processors()).then(|| {
            format!(
                "{} is for GPUs, and this computes on the processor: say f32, bf16 or auto",
                self.name()
            )
        })
    }

    /// What it means for pipelines of this process.
    ///
    /// # Errors
    /// [`Error::Request`] where they compute on the processor, and only GPUs have it.
    pub fn resolve(self) -> Result<Precision> {
        match ground::accelerator() {
            Some(_) => Ok(self.here()),
            None => self.resolve_on_processor(),
        }
    }

    /// What it means for networks that compute on the processor whatever pipelines do.
    ///
    /// # Errors
    /// [`Error::Request`] where only GPUs have it.
    pub fn resolve_on_processor(self) -> Result<Precision> {
        match self.refused_by_processors() {
            Some(problem) => Err(Error::request("precision", problem)),
            None => Ok(self.here()),
        }
    }

    fn here(self) -> Precision {
        match self {
            PrecisionChoice::F32 => Precision::F32,
            PrecisionChoice::Tf32 => Precision::Tf32,
            PrecisionChoice::Bf16 => Precision::Bf16,
            PrecisionChoice::F16 => Precision::F16,
            PrecisionChoice::Auto if ground::accelerator().is_some() => Precision::Bf16,
            PrecisionChoice::Auto if kernels::native_bf16() => Precision::Bf16,
            PrecisionChoice::Auto => Precision::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blame;

    #[test]
    fn a_processor_refuses_what_only_gpus_have_and_says_what_else_there_is() {
        for choice in PrecisionChoice::ALL {
            assert_eq!(PrecisionChoice::named(choice.name()), Some(choice));
            let of_gpus = matches!(choice, PrecisionChoice::Tf32 | PrecisionChoice::F16);
            // Tests of this crate have no accelerator.
            for resolved in [choice.resolve(), choice.resolve_on_processor()] {
                assert_eq!(resolved.is_err(), of_gpus, "{choice:?}");
                let Err(refused) = resolved else { continue };
                assert_eq!(refused.blame(), Blame::User);
                let words = refused.to_string();
                let begin = format!("precision {} is for GPUs", choice.name());
                assert!(words.starts_with(&begin), "{words}");
                assert!(words.ends_with("say f32, bf16 or auto"), "{words}");
            }
        }
        assert_eq!(PrecisionChoice::named("f64"), None);
    }
}
