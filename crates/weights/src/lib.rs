//! Reads: safetensors, model folders, and what their headers tell.
