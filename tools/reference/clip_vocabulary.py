"""Writes crates/engine/src/clip_prompt/merges.bin from the merges that OpenCLIP's package carries.

    python clip_vocabulary.py bpe_simple_vocab_16e6.txt.gz      # out of the wheel of open-clip-torch, folder open_clip

Each merge is two little-endian u16: the ids of the tokens it joins. Ids count the 256 bytes, the 256 bytes at the end of a
word, then the merges in their order; the start and the end token come last. So the vocabulary follows from the merges.
"""

import gzip
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "crates/engine/src/clip_prompt/merges.bin"
VOCABULARY = 49_408
END_OF_WORD = "</w>"


def byte_letters() -> list[str]:
    """The letter that stands for each byte, in the order of their ids: those that can be printed first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def read(path: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids and merges."""
    lines = gzip.open(path).read().decode("utf-8").split("\n")
    letters = byte_letters()
    count = VOCABULARY - 2 * len(letters) - 2
    merges = [tuple(line.split()) for line in lines[1 : 1 + count]]
    assert len(merges) == count and all(len(merge) == 2 for merge in merges)
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    assert len(ids) == VOCABULARY
    return ids, merges


def main() -> None:
    ids, merges = read(sys.argv[1])
    joined = b"".join(ids[part].to_bytes(2, "little") for merge in merges for part in merge)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(joined)


if __name__ == "__main__":
    main()
