//! The names of methods and schedules, as people write them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// How a step is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// DDIM; with `eta` above 0 it draws noise.
    Ddim,
    /// PLMS, the linear multistep part of PNDM.
    Pndm,
    /// Euler.
    Euler,
    /// Euler with fresh noise in every step.
    EulerAncestral,
    /// Heun: two calls of the network a step but the last.
    Heun,
    /// DPM-Solver++, multistep.
    Dpmpp2M,
    /// DPM-Solver++, multistep, with fresh noise in every step.
    Dpmpp2MSde,
    /// DPM-Solver++, singlestep.
    Dpmpp2S,
    /// DPM-Solver++ over a Brownian path: two calls of the network a step but the last.
    DpmppSde,
    /// UniPC, predictor and corrector.
    UniPc,
    /// Latent consistency.
    Lcm,
    /// Euler for flow matching.
    FlowMatchEuler,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 12] = [
        Method::Ddim,
        Method::Pndm,
        Method::Euler,
        Method::EulerAncestral,
        Method::Heun,
        Method::Dpmpp2M,
        Method::Dpmpp2MSde,
        Method::Dpmpp2S,
        Method::DpmppSde,
        Method::UniPc,
        Method::Lcm,
        Method::FlowMatchEuler,
    ];

    /// Its name in messages and lists.
    pub fn name(self) -> &'static str {
        match self {
            Method::Ddim => "DDIM",
            Method::Pndm => "PLMS",
            Method::Euler => "Euler",
            Method::EulerAncestral => "Euler a",
            Method::Heun => "Heun",
            Method::Dpmpp2M => "DPM++ 2M",
            Method::Dpmpp2MSde => "DPM++ 2M SDE",
            Method::Dpmpp2S => "DPM++ 2S",
            Method::DpmppSde => "DPM++ SDE",
            Method::UniPc => "UniPC",
            Method::Lcm => "LCM",
            Method::FlowMatchEuler => "Flow Euler",
        }
    }

    /// Other spellings, squeezed.
    fn others(self) -> &'static [&'static str] {
        match self {
            Method::Ddim => &["ddimscheduler"],
            Method::Pndm => &["pndm", "pndmscheduler"],
            Method::Euler => &["eulerdiscrete", "eulerdiscretescheduler"],
            Method::EulerAncestral => &[
                "eulerancestral",
                "eulerancestraldiscrete",
                "eulerancestraldiscretescheduler",
            ],
            Method::Heun => &["heundiscrete", "heundiscretescheduler"],
            Method::Dpmpp2M => &["dpmsolver++", "dpmsolvermultistepscheduler"],
            Method::Dpmpp2MSde => &["sdedpmsolver++"],
            Method::Dpmpp2S => &["dpmsolversinglestepscheduler"],
            Method::DpmppSde => &["dpmsolversdescheduler"],
            Method::UniPc => &["unipcmultistepscheduler", "unipcbh2"],
            Method::Lcm => &["lcmscheduler"],
            Method::FlowMatchEuler => &[
                "flowmatcheuler",
                "floweulerdiscrete",
                "flowmatcheulerdiscretescheduler",
            ],
        }
    }
}

/// How noise levels are spread over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// The scheduler's own timestep spacing.
    Normal,
    /// Karras et al., 2022, with rho 7.
    Karras,
    /// Evenly in the logarithm of sigma.
    Exponential,
    /// Every n-th of the training sigmas, from the top.
    Simple,
    /// By quantiles of the beta distribution with 0.6 and 0.6.
    Beta,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Schedule; 5] = [
        Schedule::Normal,
        Schedule::Karras,
        Schedule::Exponential,
        Schedule::Simple,
        Schedule::Beta,
    ];

    /// Its name in messages and lists.
    pub fn name(self) -> &'static str {
        match self {
            Schedule::Normal => "normal",
            Schedule::Karras => "karras",
            Schedule::Exponential => "exponential",
            Schedule::Simple => "simple",
            Schedule::Beta => "beta",
        }
    }
}

/// Lower case, without blanks, hyphens and underscores; `pp` after `dpm` is `++`.
fn squeezed(text: &str) -> String {
    let letters = text.chars().filter(|c| !matches!(c, ' ' | '-' | '_'));
    let squeezed: String = letters.collect::<String>().to_lowercase();
    squeezed.replace("dpmpp", "dpm++")
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Method> {
        let wanted = squeezed(text);
        let is = |method: &Method| {
            squeezed(method.name()) == wanted || method.others().contains(&wanted.as_str())
        };
        Method::ALL.into_iter().find(is).ok_or_else(|| {
            let names: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
            Error::config(
                "sampler",
                "method",
                format!("is '{text}', not one of {}", names.join(", ")),
            )
        })
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Schedule> {
        let wanted = squeezed(text);
        let is = |schedule: &Schedule| schedule.name() == wanted;
        Schedule::ALL.into_iter().find(is).ok_or_else(|| {
            let names: Vec<&str> = Schedule::ALL.iter().map(|s| s.name()).collect();
            Error::config(
                "sampler",
                "schedule",
                format!("is '{text}', not one of {}", names.join(", ")),
            )
        })
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        for (text, method) in [
            ("Euler a", Method::EulerAncestral),
            ("euler_ancestral", Method::EulerAncestral),
            ("DPM++ 2M SDE", Method::Dpmpp2MSde),
            ("dpmpp_2m", Method::Dpmpp2M),
            ("dpmpp-sde", Method::DpmppSde),
            ("uni_pc", Method::UniPc),
            ("PLMS", Method::Pndm),
            ("lcm", Method::Lcm),
        ] {
            assert_eq!(text.parse::<Method>().unwrap(), method, "{text}");
        }
        for method in Method::ALL {
            assert_eq!(method.name().parse::<Method>().unwrap(), method);
        }
        for schedule in Schedule::ALL {
            let shouted = schedule.name().to_uppercase();
            assert_eq!(shouted.parse::<Schedule>().unwrap(), schedule);
        }
    }

    #[test]
    fn a_wrong_name_is_told_the_right_ones() {
        let text = "Eulr".parse::<Method>().unwrap_err().to_string();
        assert!(text.contains("Eulr") && text.contains("Euler a"), "{text}");
        let text = "karas".parse::<Schedule>().unwrap_err().to_string();
        assert!(text.contains("karas") && text.contains("beta"), "{text}");
    }
}
