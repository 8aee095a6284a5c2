//! The rows of an encoder's tables that a chunk needs, read one by one: tables never move as a whole.

use lowtide_core::TensorLayout;
use lowtide_kernels as kernels;
use lowtide_models::Tensor;
use lowtide_models::weights::stored;
use lowtide_weights::Checkpoint;

use super::chunks::{CHUNK_TOKENS, Chunk, Token};
use super::inversion::Inversion;
use crate::pipeline::tables::{TableScale, table_scale};
use crate::{Error, Result};

/// Reads single rows of a table.
struct Table<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a TensorLayout,
    row: Vec<u8>,
    /// What its numbers are multiplied by, once it was looked for.
    scale: Option<Option<f32>>,
}

impl<'a> Table<'a> {
    fn open(checkpoint: &'a Checkpoint, layout: &'a TensorLayout) -> Table<'a> {
        let bytes = layout.shape[1] * layout.dtype.size() as usize;
        Table {
            checkpoint,
            layout,
            row: vec![0; bytes],
            scale: None,
        }
    }

    fn read(&mut self, model: &str, row: usize, out: &mut [f32]) -> Result<()> {
        let name = &self.layout.name;
        let incomplete = |what: String| Error::Incomplete {
            model: model.to_owned(),
            what,
        };
        if row >= self.layout.shape[0] {
            return Err(Error::Tokenizer {
                model: model.to_owned(),
                problem: format!(
                    "gives token {row}, but the text encoder knows only {}",
                    self.layout.shape[0]
                ),
            });
        }
        let entry = self.checkpoint.get(name);
        let entry = entry.ok_or_else(|| incomplete(format!("tensor {name} is missing")))?;
        let stored =
            stored(self.layout.dtype, || name.clone()).map_err(|e| incomplete(e.to_string()))?;
        let at = row as u64 * self.row.len() as u64;
        self.checkpoint.read_range(entry, at, &mut self.row)?;
        kernels::to_f32(stored, &self.row, out);
        let scale = match self.scale {
            Some(scale) => scale,
            None => *self
                .scale
                .insert(table_scale(self.checkpoint, self.layout).map_err(
                    |refused| match refused {
                        TableScale::File(refused) => refused.into(),
                        TableScale::Model(refused) => incomplete(refused.to_string()),
                    },
                )?),
        };
        if let Some(scale) = scale {
            out.iter_mut().for_each(|number| *number *= scale);
        }
        Ok(())
    }
}

fn refused(component: &'static str, model: &str) -> impl Fn(lowtide_models::Error) -> Error {
    move |source| Error::Model {
        model: model.to_owned(),
        component,
        source,
    }
}

/// The rows of a chunk: those of its ids from `table`, those of textual inversions from `inversions`, which must be those
/// that the chunk was read with.
///
/// # Shapes
/// (77, D), f32.
///
/// # Errors
/// When an id is beyond the table, an inversion was made for another model, or a file cannot be read.
pub fn token_rows(
    (model, checkpoint): (&str, &Checkpoint),
    table: &TensorLayout,
    chunk: &Chunk,
    inversions: &[Inversion],
) -> Result<Tensor> {
    let width = table.shape[1];
    let mut rows = Tensor::new(&[CHUNK_TOKENS, width]).map_err(refused("text_encoder", model))?;
    let mut file = Table::open(checkpoint, table);
    for (token, out) in chunk
        .tokens
        .iter()
        .zip(rows.data_mut().chunks_exact_mut(width))
    {
        match *token {
            Token::Id(id) => file.read(model, id as usize, out)?,
            Token::Learned { inversion, row } => {
                let inversion = &inversions[inversion];
                let widths = inversion.widths()?;
                let learned = inversion.row(row, width)?.ok_or_else(|| {
                    let name = &inversion.names()[0];
                    Error::request(
                        format!("embedding '{name}'"),
                        format!(
                            "has rows of {widths:?} values, but this model's are {width} wide: it was made for another family"
                        ),
                    )
                })?;
                out.copy_from_slice(learned);
            }
        }
    }
    Ok(rows)
}

/// The rows of the position table that a chunk needs: (77, D), f32, or all there are.
///
/// # Errors
/// When the file cannot be read or memory is refused.
pub fn position_rows(
    (model, checkpoint): (&str, &Checkpoint),
    table: &TensorLayout,
) -> Result<Tensor> {
    let (count, width) = (table.shape[0].min(CHUNK_TOKENS), table.shape[1]);
    let mut rows = Tensor::new(&[count, width]).map_err(refused("text_encoder", model))?;
    let mut file = Table::open(checkpoint, table);
    for (row, out) in rows.data_mut().chunks_exact_mut(width).enumerate() {
        file.read(model, row, out)?;
    }
    Ok(rows)
}
