//! Writes and reads the files people open: pictures, with what they were made with in them.
