//! Wires: the binary `lowtide`.
fn main() {}
