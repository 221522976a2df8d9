//! What is wrong, named: a file for each rule.

pub mod lingering;
