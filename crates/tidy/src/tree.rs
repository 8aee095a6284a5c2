//! The files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold nothing anybody wrote.
const NOT_OURS: [&str; 4] = ["target", ".git", "node_modules", "__pycache__"];
/// Files above this many bytes are weights and pictures, not text.
const TEXT_BYTES_MAX: u64 = 2 << 20;

/// A text file of the repository.
#[derive(Clone, Debug)]
pub struct TextFile {
    /// Its path from the repository's root, with `/`.
    pub path: String,
    /// What is in it.
    pub text: String,
}

impl TextFile {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// The folder that holds the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .expect("this crate lies in crates/tidy")
        .to_owned()
}

/// Every text file of the repository, by path. Build output and hidden folders other than `.ci` are passed over.
///
/// # Panics
/// When a folder or a file cannot be read.
pub fn text_files() -> Vec<TextFile> {
    let root = root();
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the repository's folders can be listed") {
            let entry = entry.expect("the repository's folders can be listed");
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry
                .file_type()
                .expect("the system knows what its entries are");
            if kind.is_dir() {
                let hidden = name.starts_with('.') && name != ".ci";
                if !hidden && !NOT_OURS.contains(&name.as_str()) {
                    folders.push(entry.path());
                }
            // In a worktree it is a file, with the place of the repository in it.
            } else if kind.is_file() && name != ".git" {
                files.extend(read(&root, &entry.path()));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// The file, unless it is large or not text.
fn read(root: &Path, path: &Path) -> Option<TextFile> {
    // Another process may be replacing it; then it is looked at next time.
    let bytes = fs::metadata(path).ok()?.len();
    let text = (bytes <= TEXT_BYTES_MAX).then(|| fs::read(path).ok())??;
    let path = path
        .strip_prefix(root)
        .expect("the walk begins at the root");
    let path = path.to_string_lossy().replace('\\', "/");
    Some(TextFile {
        path,
        text: String::from_utf8(text).ok()?,
    })
}
