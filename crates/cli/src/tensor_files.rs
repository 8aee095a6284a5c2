//! `--noise` and `--dump`: tensors in safetensors files, for comparison with other implementations.

use crate::config::Size;
use crate::failure::Failure;
use lowtide_core::{Dtype, TensorLayout};
use lowtide_weights::{Checkpoint, SafetensorsWriter};
use std::path::Path;

/// The tensor a `--noise` file must hold.
const NOISE: &str = "noise";

/// Reads the tensor `noise`, f32, (N, C, H/8, W/8) for N pictures; the engine checks C.
pub(crate) fn read_noise(path: &Path, size: Size, count: usize) -> Result<Vec<f32>, Failure> {
    let place = path.display();
    let file = Checkpoint::open(path)?;
    let entry = file.get(NOISE).ok_or_else(|| {
        Failure::mistake(format!(
            "--noise '{place}': no tensor '{NOISE}' in it; write it under that name"
        ))
    })?;
    let (rows, columns) = (size.height / 8, size.width / 8);
    let fits = matches!(entry.shape[..], [n, _, h, w] if (n, h, w) == (count, rows, columns));
    if entry.dtype != Dtype::F32 || !fits {
        return Err(Failure::mistake(format!(
            "--noise '{place}': '{NOISE}' is {} {:?}; this request needs F32 [{count}, C, {rows}, {columns}]",
            entry.dtype, entry.shape
        )));
    }
    let mut bytes = vec![0; entry.bytes as usize];
    file.read(entry, &mut bytes)?;
    Ok(bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|four| f32::from_le_bytes(*four))
        .collect())
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor<'a> {
    /// Its name in the file.
    pub(crate) name: &'static str,
    /// Its dimensions, slowest first.
    pub(crate) shape: Vec<usize>,
    /// Its elements, the last dimension fastest.
    pub(crate) data: &'a [f32],
}

/// Writes the tensors as f32; the file appears whole or not at all.
pub(crate) fn write(path: &Path, tensors: &[Tensor<'_>]) -> Result<(), Failure> {
    let layouts: Vec<TensorLayout> = tensors
        .iter()
        .map(|tensor| TensorLayout {
            name: tensor.name.to_owned(),
            dtype: Dtype::F32,
            shape: tensor.shape.clone(),
        })
        .collect();
    let mut writer = SafetensorsWriter::create(path, &layouts)?;
    for tensor in tensors {
        for part in tensor.data.chunks(PART_ELEMENTS) {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write(tensor.name, &bytes)?;
        }
    }
    Ok(writer.finish()?)
}

/// Elements turned into bytes at a time: 256 KiB.
const PART_ELEMENTS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: usize, height: usize) -> Size {
        Size { width, height }
    }

    #[test]
    fn what_is_written_can_be_read_as_noise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.safetensors");
        let data: Vec<f32> = (0..2 * 2 * 4).map(|k| k as f32 / 3.0).collect();
        let tensor = Tensor {
            name: NOISE,
            shape: vec![1, 2, 2, 4],
            data: &data,
        };
        write(&path, &[tensor]).unwrap();
        assert_eq!(read_noise(&path, size(32, 16), 1).unwrap(), data);
        let failure = read_noise(&path, size(16, 32), 1).unwrap_err();
        assert_eq!(failure.exit_code(), 2);
        assert!(
            failure.to_string().contains("needs F32 [1, C, 4, 2]"),
            "{failure}"
        );
    }

    #[test]
    fn a_file_without_noise_is_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.safetensors");
        write(
            &path,
            &[Tensor {
                name: "other",
                shape: vec![1],
                data: &[0.0],
            }],
        )
        .unwrap();
        assert!(
            read_noise(&path, size(16, 16), 1)
                .unwrap_err()
                .to_string()
                .contains("no tensor 'noise'")
        );
        assert_eq!(
            read_noise(&folder.path().join("none"), size(16, 16), 1)
                .unwrap_err()
                .exit_code(),
            2
        );
    }
}
