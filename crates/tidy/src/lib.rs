//! Checks the house: style, direction of dependencies, licences. The rules are tests in `tests/`; here is what they
//! look at: [`tree`] (the files of the repository), [`rust`] (code, comments and tests told apart), [`packages`] (what
//! cargo resolved), [`licence`] (SPDX expressions).

#![forbid(unsafe_code)]

pub mod licence;
pub mod packages;
pub mod rust;
pub mod tree;
