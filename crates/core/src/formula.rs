//! Bytes and work as data: sums of products of named numbers, so that a server plans for a model it cannot run.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::Bytes;

/// The name of a number that a request or a rung fixes: `tokens`, `width`, `batch`.
pub type VarName = Cow<'static, str>;

/// A formula's bytes never exceed this (2^60): far more than any machine has, and a few of them still add up.
const BYTES_MAX: u64 = 1 << 60;

/// The named numbers a formula is evaluated with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vars(BTreeMap<VarName, u64>);

impl Vars {
    /// No variables.
    pub fn new() -> Vars {
        Vars::default()
    }

    /// The value of `name`, or `None` when nobody has set it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Sets `name`, replacing an earlier value.
    pub fn set(&mut self, name: impl Into<VarName>, value: u64) {
        self.0.insert(name.into(), value);
    }

    /// The same variables with `name` set: for building a set in one expression.
    #[must_use]
    pub fn with(mut self, name: impl Into<VarName>, value: u64) -> Vars {
        self.set(name, value);
        self
    }

    /// Names and values in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &value)| (name.as_ref(), value))
    }
}

impl<K: Into<VarName>> FromIterator<(K, u64)> for Vars {
    fn from_iter<I: IntoIterator<Item = (K, u64)>>(pairs: I) -> Vars {
        Vars(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
        )
    }
}

/// A formula names a variable that neither the request nor the rung has set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the formula needs the variable '{0}', which is not set")]
pub struct UnknownVariable(pub String);

/// A coefficient times a product of variables; no factors make a constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// What the product is multiplied by: bytes or operations per unit of the product.
    pub coefficient: f64,
    /// The variables multiplied; one may stand several times.
    pub factors: Vec<VarName>,
}

impl Term {
    /// `coefficient` times the product of `factors`.
    pub fn new<N: Into<VarName> + Clone>(coefficient: f64, factors: &[N]) -> Term {
        Term {
            coefficient,
            factors: factors.iter().cloned().map(Into::into).collect(),
        }
    }

    fn eval(&self, vars: &Vars) -> Result<f64, UnknownVariable> {
        self.factors
            .iter()
            .try_fold(self.coefficient, |product, name| {
                let value = vars
                    .get(name)
                    .ok_or_else(|| UnknownVariable(name.to_string()))?;
                Ok(product * value as f64)
            })
    }
}

/// The largest of several sums of terms: a network's activations peak in one of its places, and which one
/// depends on the shape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Formula {
    /// The sums of which the largest counts. None at all mean zero.
    pub alternatives: Vec<Vec<Term>>,
}

impl Formula {
    /// Always zero.
    pub fn zero() -> Formula {
        Formula::default()
    }

    /// Always `value`.
    pub fn constant(value: f64) -> Formula {
        Formula {
            alternatives: vec![vec![Term {
                coefficient: value,
                factors: Vec::new(),
            }]],
        }
    }

    /// One sum of `(coefficient, variables)` terms.
    pub fn sum(terms: &[(f64, &[&'static str])]) -> Formula {
        let terms = terms
            .iter()
            .map(|(coefficient, factors)| Term::new(*coefficient, factors));
        Formula {
            alternatives: vec![terms.collect()],
        }
    }

    /// The larger of `self` and `other`.
    #[must_use]
    pub fn or(mut self, other: Formula) -> Formula {
        self.alternatives.extend(other.alternatives);
        self
    }

    /// `self` plus `coefficient` times the product of `factors`, whichever alternative counts.
    #[must_use]
    pub fn plus(mut self, coefficient: f64, factors: &[&'static str]) -> Formula {
        if self.alternatives.is_empty() {
            self.alternatives.push(Vec::new());
        }
        for sum in &mut self.alternatives {
            sum.push(Term::new(coefficient, factors));
        }
        self
    }

    /// The value for `vars`.
    ///
    /// # Errors
    /// A variable that is not set, in whichever alternative.
    pub fn eval(&self, vars: &Vars) -> Result<f64, UnknownVariable> {
        let mut largest: Option<f64> = None;
        for sum in &self.alternatives {
            let mut value = 0.0;
            for term in sum {
                value += term.eval(vars)?;
            }
            largest = Some(largest.map_or(value, |so_far| so_far.max(value)));
        }
        Ok(largest.unwrap_or(0.0))
    }

    /// The value times `correction` as a size: rounded up, a negative one is zero, and what is not below 2^60
    /// (or not a number) is 2^60, which fits nowhere.
    ///
    /// # Errors
    /// As [`Formula::eval`].
    pub fn corrected_bytes(&self, vars: &Vars, correction: f64) -> Result<Bytes, UnknownVariable> {
        let value = (self.eval(vars)? * correction).ceil();
        Ok(Bytes(if value < BYTES_MAX as f64 {
            value.max(0.0) as u64
        } else {
            BYTES_MAX
        }))
    }

    /// The value as a size: [`Formula::corrected_bytes`] without a correction.
    ///
    /// # Errors
    /// As [`Formula::eval`].
    pub fn bytes(&self, vars: &Vars) -> Result<Bytes, UnknownVariable> {
        self.corrected_bytes(vars, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_alternative_counts() {
        let formula = Formula::sum(&[(2.0, &["rows", "width"]), (10.0, &[])])
            .or(Formula::sum(&[(1.0, &["width", "width"])]));
        assert_eq!(
            formula.eval(&Vars::new().with("rows", 3).with("width", 4)),
            Ok(34.0)
        );
        assert_eq!(
            formula.eval(&Vars::new().with("rows", 3).with("width", 40)),
            Ok(1600.0)
        );
        assert_eq!(
            formula
                .plus(0.5, &["rows"])
                .eval(&Vars::new().with("rows", 3).with("width", 40)),
            Ok(1601.5)
        );
    }

    #[test]
    fn bytes_round_up_and_never_wrap() {
        let none = Vars::new();
        assert_eq!(Formula::constant(1.25).bytes(&none), Ok(Bytes(2)));
        assert_eq!(
            Formula::constant(100.0).corrected_bytes(&none, 1.1),
            Ok(Bytes(111))
        );
        assert_eq!(Formula::constant(-5.0).bytes(&none), Ok(Bytes(0)));
        assert_eq!(Formula::constant(1e300).bytes(&none), Ok(Bytes(1 << 60)));
        assert_eq!(Formula::constant(f64::NAN).bytes(&none), Ok(Bytes(1 << 60)));
        assert_eq!(Formula::zero().bytes(&none), Ok(Bytes::ZERO));
    }

    #[test]
    fn a_missing_variable_is_named() {
        let formula = Formula::sum(&[(1.0, &["tokens"])]);
        assert_eq!(
            formula.eval(&Vars::new()),
            Err(UnknownVariable("tokens".into()))
        );
    }
}
