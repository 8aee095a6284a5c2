//! Computes: one file an architecture; names in, tensors out.
