//! Tables of embeddings: they never move as a whole, the rows used are read.

use lowtide_core::TensorLayout;
use lowtide_kernels as kernels;
use lowtide_models::weights::{SCALE_NAMES, STRANGE_SCALES, stored};
use lowtide_weights::Checkpoint;

use crate::{Error, Result};

/// Reads rows of an embedding table from its file, one by one.
pub(crate) fn rows(
    checkpoint: &Checkpoint,
    table: &TensorLayout,
    ids: &[u32],
    out: &mut [f32],
    wrap: impl Fn(lowtide_models::Error) -> Error,
) -> Result<()> {
    let entry = checkpoint.get(&table.name).ok_or_else(|| {
        wrap(lowtide_models::Error::MissingTensor {
            name: table.name.clone(),
        })
    })?;
    let stored = stored(table.dtype, || table.name.clone()).map_err(&wrap)?;
    let columns = table.shape[1];
    let scale = table_scale(checkpoint, table).map_err(|refused| match refused {
        TableScale::Model(refused) => wrap(refused),
        TableScale::File(refused) => refused.into(),
    })?;
    let mut row = vec![0; columns * stored.size()];
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(columns)) {
        checkpoint.read_range(entry, u64::from(id) * row.len() as u64, &mut row)?;
        kernels::to_f32(stored, &row, out);
        if let Some(scale) = scale {
            out.iter_mut().for_each(|number| *number *= scale);
        }
    }
    Ok(())
}

/// Why what a table is multiplied by is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableScale {
    /// It is of a kind that tables cannot have.
    #[error(transparent)]
    Model(lowtide_models::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] lowtide_weights::Error),
}

/// What the numbers of a table in fp8 are multiplied by, where the file has something.
pub(crate) fn table_scale(
    checkpoint: &Checkpoint,
    table: &TensorLayout,
) -> std::result::Result<Option<f32>, TableScale> {
    let Some(place) = table.name.strip_suffix("weight") else {
        return Ok(None);
    };
    let beside = |name: &str| checkpoint.get(&format!("{place}{name}"));
    let unknown = |name: &str| {
        TableScale::Model(lowtide_models::Error::UnknownScales {
            name: name.to_owned(),
        })
    };
    if let Some(strange) = STRANGE_SCALES.into_iter().find_map(beside) {
        return Err(unknown(&strange.name));
    }
    let Some(entry) = SCALE_NAMES.into_iter().find_map(beside) else {
        return Ok(None);
    };
    let Ok(stored) = stored(entry.dtype, String::new) else {
        return Err(unknown(&entry.name));
    };
    if entry.elements() != 1 {
        return Err(unknown(&entry.name));
    }
    let (mut bytes, mut scale) = (vec![0; stored.size()], [0.0]);
    checkpoint.read(entry, &mut bytes)?;
    kernels::to_f32(stored, &bytes, &mut scale);
    Ok(Some(scale[0]))
}
