//! The demo checkpoint, carried in the binary, so that it is found from any folder and after an installation.

/// A file's bytes at a multiple of 64, as weights are read where they lie by vector loads.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

macro_rules! file {
    ($path:literal) => {{
        static FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../demo/", $path)));
        ($path, &FILE.0)
    }};
}

/// What a user calls it.
pub(crate) const NAME: &str = "demo";

/// Its files: path relative to the model folder, and bytes, which start at a multiple of 64.
pub(crate) static FILES: &[(&str, &[u8])] = &[
    file!("model_index.json"),
    file!("lowtide.json"),
    file!("scheduler/scheduler_config.json"),
    file!("tokenizer/tokenizer.json"),
    file!("tokenizer/tokenizer_config.json"),
    file!("tokenizer/chat_template.jinja"),
    file!("text_encoder/config.json"),
    file!("text_encoder/model.safetensors"),
    file!("transformer/config.json"),
    file!("transformer/diffusion_pytorch_model.safetensors"),
    file!("vae/config.json"),
    file!("vae/diffusion_pytorch_model.safetensors"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_binary_carries_every_file_of_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let mut on_disk = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_none_or(|ending| ending != "md") {
                    on_disk.push(
                        path.strip_prefix(&folder)
                            .unwrap()
                            .to_str()
                            .unwrap()
                            .replace('\\', "/"),
                    );
                }
            }
        }
        let mut carried: Vec<_> = FILES.iter().map(|(path, _)| (*path).to_owned()).collect();
        on_disk.sort();
        carried.sort();
        assert_eq!(carried, on_disk);
        for (path, bytes) in FILES {
            assert_eq!(*bytes, std::fs::read(folder.join(path)).unwrap(), "{path}");
        }
    }

    #[test]
    fn weights_lie_where_vector_loads_want_them() {
        for (path, bytes) in FILES {
            assert_eq!(bytes.as_ptr() as usize % 64, 0, "{path}");
        }
    }
}
