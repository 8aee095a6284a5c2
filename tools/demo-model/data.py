"""Fetches the training data and makes of it pictures with names.

    python data.py WORK

The data are three npm packages, named here by version and sha256. `npm pack` fetches each into WORK/packages; a file that is
there is not fetched again, and one with other bytes is refused. Writes

    WORK/pictures.npy     (N, 128, 128, 4) uint8: red, green, blue, opacity; colours are multiplied by the opacity
    WORK/objects.json     for each picture what it may be called, and how it may be recoloured
    WORK/more.npy         every other picture of the package, for the autoencoder alone
    WORK/unseen.npy       pictures that no checkpoint's autoencoder was trained on, for measuring it: signs, and people in other
                          colours of skin
"""

import argparse
import hashlib
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from colours import COLOUR_WORDS, Hues

SIZE = 128
UNSEEN = 60
HERE = Path(__file__).parent


@dataclass
class Package:
    name: str
    version: str
    sha256: str
    folder: str
    wanted: str
    """A pattern of the files that are used, licences included."""

    def fetch(self, work: Path) -> Path:
        packages = work / "packages"
        packages.mkdir(parents=True, exist_ok=True)
        archive = packages / f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", f"{self.name}@{self.version}"], cwd=packages, check=True)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise SystemExit(f"{archive}: sha256 is {found}, and {self.sha256} was trained on; delete the file to fetch it again")
        folder = packages / self.folder
        with tarfile.open(archive) as tar:
            for member in tar:
                inner = member.name.split("/", 1)[-1]
                if member.isfile() and re.fullmatch(self.wanted, inner) and not (folder / inner).exists():
                    member.name = inner
                    tar.extract(member, folder, filter="data")
        return folder


PICTURES = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "pictures", r"assets/[^/]*\.webp|README.md|package.json",
)  # fmt: skip
GROUPS = Package(
    "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "groups", r"emoji\.json|LICENSE|package.json",
)  # fmt: skip
NAMES = Package(
    "unicode-emoji-json", "0.8.0", "1ff55192e88e1d5c6706b28ae95f0b26370a0e79f05ff86bcbed6b9e5d7ea244",
    "names", r"data-by-emoji\.json|LICENSE|package.json",
)  # fmt: skip

# Groups of emojis that are signs rather than things, and what of them is a thing after all.
SIGNS = set(
    "country-flag alphanum family av-symbol transport-sign keycap gender other-symbol time punctuation subdivision-flag "
    "geometric arrow math currency person-symbol warning religion place-map hotel".split()
)
THINGS_AMONG_SIGNS = set(
    "alarm_clock stopwatch hourglass watch timer_clock mantelpiece_clock hourglass_flowing_sand clock3 recycle question exclamation "
    "trident radioactive_sign warning star_of_david yin_yang peace_symbol red_circle large_blue_circle large_orange_circle "
    "large_yellow_circle large_green_circle large_purple_circle large_red_square large_blue_square large_yellow_square "
    "large_green_square".split()
)
# Of these, the first form of these scripts took none for its autoencoder either.
NEVER_TRAINED = set("alphanum family av-symbol transport-sign keycap gender other-symbol time punctuation".split())
# Short names that say something else in plain English than the picture shows.
MISLEADING = {"tada", "cop", "moyai", "v", "no good", "ok", "raised hand", "fist", "point up", "hand", "large"}
# What people call these; the names of the standard are not what one types.
PLAIN = {
    "automobile": ["car", "automobile"],
    "sport utility vehicle": ["suv", "truck"],
    "bicycle": ["bicycle", "bike"],
    "house": ["house", "home"],
    "smiling face with sunglasses": ["smiling face with sunglasses", "cool face with sunglasses"],
    "hot beverage": ["cup of coffee", "coffee", "hot beverage"],
    "teacup without handle": ["cup of tea", "teacup"],
    "t shirt": ["t shirt", "shirt"],
    "deciduous tree": ["tree", "deciduous tree"],
    "rocket": ["rocket", "space rocket"],
    "beer mug": ["beer mug", "beer", "glass of beer"],
    "soccer ball": ["soccer ball", "football"],
    "airplane": ["airplane", "plane"],
    "locomotive": ["locomotive", "steam train"],
    "rose": ["rose", "red rose"],
    "wine glass": ["wine glass", "glass of wine"],
    "horizontal traffic light": ["horizontal traffic light"],
    "vertical traffic light": ["traffic light", "vertical traffic light"],
    "closed book": ["closed book", "book"],
    "ewe": ["ewe", "sheep"],
    "ear of corn": ["ear of corn", "corn"],
    "optical disk": ["optical disk", "cd"],
    "locked": ["locked", "padlock", "lock"],
    "pot of food": ["pot of food", "stew"],
}


def characters(unified: str) -> str:
    return "".join(chr(int(code, 16)) for code in unified.split("-")).replace("\ufe0f", "")


def clean(name: str) -> str:
    """Lower case, straight apostrophes, no punctuation."""
    name = name.lower().replace("\u2019", "'")
    return re.sub(r"\s+", " ", re.sub(r"[-_:,().&\u201c\u201d]", " ", name)).strip()


def is_thing(entry: dict) -> bool:
    """Whether it is a picture of something, and not one more of the same person."""
    group, short = entry["subcategory"], entry["short_name"]
    if group in SIGNS and short not in THINGS_AMONG_SIGNS:
        return False
    if entry["category"] == "Flags" and group != "flag":
        return False
    name = entry["plain_name"]
    first = name.split()[0]
    if "facing right" in name or "right facing" in name:
        return False
    if not group.startswith("person"):
        return True
    if group == "person-fantasy" and first in ("man", "woman", "person"):
        return False
    if group.removeprefix("person-") in ("activity", "sport", "gesture", "role") and first in ("man", "woman", "men", "women"):
        return False
    if group == "person" and re.search("blond|white hair|red hair|curly|bald|beard", name):
        return False
    return not re.search("kiss|couple", name)


def read_picture(path: Path) -> np.ndarray | None:
    """(128, 128, 4) uint8 with colours multiplied by the opacity, or None where the file has another size."""
    pixels = np.asarray(Image.open(path).convert("RGBA"), dtype=np.float32) / 255
    if pixels.shape[:2] != (2 * SIZE, 2 * SIZE):
        return None
    pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    return (pixels.reshape(SIZE, 2, SIZE, 2, 4).mean((1, 3)) * 255 + 0.5).astype(np.uint8)


def captions(entries: list[dict]) -> None:
    """Gives each entry its `captions`, of which no two entries share one."""
    taken = {entry["plain_name"] for entry in entries}
    for entry in entries:
        base = entry["plain_name"]
        found = PLAIN.get(base)
        if found is None:
            found = [base]
            for other in map(clean, entry["short_names"]):
                if re.fullmatch(r"[a-z' ]{3,40}", other) and other not in taken and other not in MISLEADING:
                    found.append(other)
            animal = base.removesuffix(" face")
            if animal != base and entry["category"] == "Animals & Nature" and animal not in taken:
                found.append(animal)
        taken.update(found)
        entry["captions"] = list(dict.fromkeys(found))


def tiers(path: Path) -> dict[str, str]:
    """Of objects.txt: the tier of each named object."""
    found, tier = {}, None
    for line in path.read_text().splitlines():
        line = line.strip()
        if line.startswith("["):
            tier = line.strip("[]")
        elif line and not line.startswith("#"):
            for name in line.split(";"):
                found.setdefault(name.strip(), tier)
    return found


def describe(entry: dict, picture: np.ndarray) -> dict:
    """What of an entry the training needs to know."""
    hues = Hues.of(picture)
    first = entry["captions"][0].split()
    bare = [" ".join(word for word in name.split() if word not in COLOUR_WORDS) for name in entry["captions"]]
    bare = [name for name in dict.fromkeys(bare) if name and name not in MISLEADING]
    of_people_or_signs = entry["subcategory"].startswith("person") or entry["subcategory"] == "flag" or "mahjong" in first
    return dict(
        captions=entry["captions"],
        bare=bare,
        own=hues.name,
        says_own=bool(hues.name and bare and not COLOUR_WORDS & set(first)),
        recolourable=bool(bare and not of_people_or_signs),
        group=entry["subcategory"],
    )


def some(paths: list[Path], count: int) -> list[Path]:
    """About so many of them, evenly spread."""
    return paths[:: max(1, len(paths) // count)]


def main(work: Path) -> None:
    pictures, groups, names = (package.fetch(work) for package in (PICTURES, GROUPS, NAMES))
    listed = json.loads((names / "data-by-emoji.json").read_text())
    named = {emoji.replace("\ufe0f", ""): known["name"] for emoji, known in listed.items()}
    entries, pixels, others, used = [], [], [], []
    for entry in json.loads((groups / "emoji.json").read_text()):
        entry["plain_name"] = clean(named.get(characters(entry["unified"]), entry["name"] or entry["short_name"]))
        path = pictures / "assets" / f"{entry['unified'].lower()}.webp"
        if path.exists() and entry["subcategory"] in NEVER_TRAINED and not is_thing(entry):
            others.append(path)
        if not is_thing(entry) or not path.exists():
            continue
        picture = read_picture(path)
        if picture is not None:
            entries.append(entry)
            pixels.append(picture)
            used.append(path)
    captions(entries)
    tier = tiers(HERE / "objects.txt")
    known = {name for entry in entries for name in entry["captions"]}
    if unknown := sorted(set(tier) - known):
        raise SystemExit(f"objects.txt names what is not in the data: {', '.join(unknown)}")
    objects = []
    for entry, picture in zip(entries, pixels):
        objects.append(describe(entry, picture))
        objects[-1]["tier"] = next((tier[name] for name in entry["captions"] if name in tier), "rest")
    np.save(work / "pictures.npy", np.stack(pixels))
    listed = {entry["unified"].lower() for entry in json.loads((groups / "emoji.json").read_text())}
    toned = sorted(path for path in (pictures / "assets").glob("*-1f3f*.webp") if path.stem not in listed)
    paths = some(others, UNSEEN // 2) + some(toned, UNSEEN // 2)
    unseen = [read_picture(path) for path in paths]
    left_out = {*paths, *used}
    more = [read_picture(path) for path in sorted((pictures / "assets").glob("*.webp")) if path not in left_out]
    np.save(work / "more.npy", np.stack([picture for picture in more if picture is not None]))
    np.save(work / "unseen.npy", np.stack([picture for picture in unseen if picture is not None]))
    (work / "objects.json").write_text(json.dumps(objects, indent=0))
    counts = {name: sum(found["tier"] == name for found in objects) for name in ("everyday", "common", "rest")}
    print(f"{len(objects)} objects: {counts}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    main(parser.parse_args().work)
