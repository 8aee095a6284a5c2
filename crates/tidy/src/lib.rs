//! Checks the house: style, dependency direction, licences.
