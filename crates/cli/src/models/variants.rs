//! The smaller variants of a model among those there are: what `quality: auto` falls back to where the model itself fits
//! in no way.

use lowtide_engine::variant_of;

use super::{Library, Model};

/// What a model says about itself beside its `model_index.json`.
const OWN: &str = "lowtide.json";

/// The models that say they are variants of the one called `name`, the largest first.
pub(crate) fn variants_of(library: &Library, name: &str) -> Vec<Model> {
    let sized = |model: Model| {
        // Only a folder can say so, and most say nothing.
        model.path().filter(|path| path.join(OWN).is_file())?;
        let folder = model.open().ok()?;
        let variant = variant_of(&folder).ok()??;
        let bytes = folder.summary().ok()?.bytes();
        (variant.of.as_deref() == Some(name)).then_some((bytes, model))
    };
    let others = library.all().into_iter().filter(|model| model.name != name);
    let mut variants: Vec<_> = others.filter_map(sized).collect();
    variants.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
    variants.into_iter().map(|(_, model)| model).collect()
}
