//! Carries out: devices, streaming, pipelines, sessions.
