//! What an opened model consists of, for those who show it.

use lowtide_core::Bytes;

use super::Engine;

impl Engine {
    /// Networks: name, blocks, bytes. A component may have several parts.
    pub(crate) fn components(&self) -> Vec<(String, usize, Bytes)> {
        let mut components: Vec<(String, usize, Bytes)> = Vec::new();
        for part in self.model().parts().into_iter().rev() {
            let layout = &part.layout;
            let (blocks, bytes) = (layout.blocks.len(), layout.bytes());
            let known = components
                .iter_mut()
                .find(|(name, ..)| *name == layout.name);
            match known {
                Some((_, all_blocks, all_bytes)) => {
                    *all_blocks += blocks;
                    *all_bytes += bytes;
                }
                None => components.push((layout.name.clone(), blocks, bytes)),
            }
        }
        components
    }
}
