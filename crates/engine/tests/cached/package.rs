//! Packages that `scripts/test-files` fetched; a test that needs one that is not there says that it was skipped.

use std::io::Write;
use std::path::PathBuf;

/// Where the package `name` (with its version) was unpacked; without it `test` is told to be skipped.
pub(crate) fn package(test: &str, name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = cache.map(|cache| cache.join("lowtide-tests").join(name));
    if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
        return Some(folder);
    }
    let line = format!("{test}: {name} is not in the cache; run scripts/test-files\n");
    eprint!("skipped: {line}");
    if let Some(skips) = std::env::var_os("LOWTIDE_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(skips)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    None
}
