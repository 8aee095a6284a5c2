//! The one EXIF field needed: `UserComment`, in a TIFF structure of two directories.

/// A JPEG segment counts its bytes in 16 bits, and begins with 2 of them and the 6 of `Exif\0\0`.
pub(super) const BLOCK_BYTES_MAX: usize = 65_535 - 2 - 6;

const BIG_ENDIAN: &[u8; 4] = b"MM\0\x2a";
const LITTLE_ENDIAN: &[u8; 4] = b"II\x2a\0";
/// Tag of the pointer to the Exif directory.
const EXIF_DIRECTORY: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;
/// Field types of TIFF 6.0.
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;
/// Bytes of one directory entry: tag, type, count, value or offset.
const ENTRY: usize = 12;
const UNICODE: &[u8; 8] = b"UNICODE\0";
const ASCII: &[u8; 8] = b"ASCII\0\0\0";

/// A big-endian EXIF block whose only content is `text`, in UTF-16.
pub(super) fn with_user_comment(text: &str) -> Vec<u8> {
    let mut comment = UNICODE.to_vec();
    comment.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    // Each directory is a count, one entry and the (absent) next directory.
    let directory = 2 + ENTRY + 4;
    let exif_at = 8;
    let comment_at = exif_at + 2 * directory;
    let mut block = BIG_ENDIAN.to_vec();
    block.extend(be32(exif_at));
    for (tag, kind, count, value) in [
        (EXIF_DIRECTORY, LONG, 1, exif_at + directory),
        (USER_COMMENT, UNDEFINED, comment.len(), comment_at),
    ] {
        block.extend(1u16.to_be_bytes());
        block.extend(tag.to_be_bytes());
        block.extend(kind.to_be_bytes());
        block.extend(be32(count));
        block.extend(be32(value));
        block.extend(be32(0));
    }
    block.extend(comment);
    block
}

fn be32(value: usize) -> [u8; 4] {
    u32::try_from(value)
        .expect("the prompt's length is limited to far less than 4 GiB")
        .to_be_bytes()
}

/// The text of the `UserComment` field, or `None` where there is none or the block is damaged.
pub(super) fn user_comment(block: &[u8]) -> Option<String> {
    let tiff = Tiff::new(block)?;
    let first = tiff.u32(4)?;
    let exif = tiff.entry(first, EXIF_DIRECTORY)?;
    let field = tiff.entry(tiff.u32(exif + 8)?, USER_COMMENT)?;
    let bytes = tiff.u32(field + 4)?;
    let at = tiff.u32(field + 8)?;
    let comment = block.get(at..at.checked_add(bytes)?)?;
    let (code, text) = comment.split_at_checked(8)?;
    if code == UNICODE {
        let units: Vec<u16> = text
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| tiff.read16(*pair))
            .collect();
        Some(String::from_utf16_lossy(&units))
    } else if code == ASCII || code == [0; 8] {
        Some(String::from_utf8_lossy(text).into_owned())
    } else {
        None
    }
}

/// A TIFF block and the order of its bytes.
struct Tiff<'a> {
    block: &'a [u8],
    big_endian: bool,
}

impl<'a> Tiff<'a> {
    fn new(block: &'a [u8]) -> Option<Tiff<'a>> {
        let mark = block.get(..4)?;
        (mark == BIG_ENDIAN || mark == LITTLE_ENDIAN).then_some(Tiff {
            block,
            big_endian: mark == BIG_ENDIAN,
        })
    }

    fn read16(&self, bytes: [u8; 2]) -> u16 {
        if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(self.read16(self.block.get(at..at.checked_add(2)?)?.try_into().ok()?))
    }

    fn u32(&self, at: usize) -> Option<usize> {
        let bytes = self.block.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let value = if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        };
        usize::try_from(value).ok()
    }

    /// Where the entry of `tag` begins in the directory at `directory`.
    fn entry(&self, directory: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.u16(directory)?);
        (0..count)
            .map(|k| directory + 2 + k * ENTRY)
            .find(|&at| self.u16(at) == Some(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_survives_its_own_block() {
        let text = "a red heart\nein rotes Herz, 赤いハート";
        assert_eq!(
            user_comment(&with_user_comment(text)).as_deref(),
            Some(text)
        );
    }

    #[test]
    fn a_block_cut_anywhere_is_no_comment_rather_than_a_panic() {
        let block = with_user_comment("a red heart");
        for cut in 0..block.len() {
            assert_eq!(user_comment(&block[..cut]), None, "{cut}");
        }
    }
}
