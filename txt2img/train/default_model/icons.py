"""Icon sets by package name: npm's archives → SVG drawings, and the concepts all sets share."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.train.default_model.letters import STROKES, letter_svg


@dataclass(frozen=True)
class Style:
    """One icon set: its package, its name in captions, its margin."""

    package: str
    version: str
    folder: str  # in the archive
    words: str  # in captions
    margin: float  # added on each side, as a share of the icon's own box
    synonyms: tuple[str, ...]  # of `words`
    usual: bool = False  # what a prompt without a style gets


# The Fluent sets keep a margin of their own inside their box; the others fill theirs.
STYLES = {
    "fluent": Style(
        package="@iconify-json/fluent-emoji",
        version="1.2.7",
        folder="3d",
        words="3d emoji",
        margin=0.0,
        synonyms=("3d", "3d icon", "3d render", "emoji"),
        usual=True,
    ),
    "flat": Style(
        package="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        folder="flat",
        words="flat emoji",
        margin=0.0,
        synonyms=("flat", "flat icon", "icon", "flat design", "vector", "minimal icon", "logo"),
    ),
    "noto": Style(
        package="@iconify-json/noto",
        version="1.2.9",
        folder="noto",
        words="noto emoji",
        margin=0.03,
        synonyms=("noto", "cartoon", "clip art", "clipart", "illustration"),
    ),
    "twemoji": Style(
        package="@iconify-json/twemoji",
        version="1.2.5",
        folder="twemoji",
        words="twemoji",
        margin=0.04,
        synonyms=("sticker", "twitter emoji", "pictogram", "symbol"),
    ),
}
KEYWORDS_PACKAGE, KEYWORDS_VERSION = "@emoji-mart/data", "1.2.1"
KEYWORDS_FILE = "package/sets/15/native.json"

SKIN_TONE = re.compile(r"1f3f[b-f]")
TEXT_LIKE = re.compile(r"keycap-(?!\d)|input-|regional-|japanese-.*-button$")


def tarball(package: str, version: str, cache: Path) -> Path:
    """The package's archive in the cache folder, fetched by npm when it is not there yet."""
    path = cache / f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if path.exists():
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise BadRequest(f"npm is needed to fetch {package}@{version}: install Node.js, run again")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [npm, "pack", "-s", f"{package}@{version}"]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode:
            raise BadFile(f"npm could not fetch {package}@{version}: check the network, run again")
        os.replace(Path(folder) / path.name, path)  # never half a file under the final name
    return path


def read_json(path: Path, member: str) -> object:
    """One JSON file of a package's archive; BadFile when it is damaged or lacks it."""
    try:
        with tarfile.open(path) as archive:
            file = archive.extractfile(member)
            return json.load(file) if file else None
    except (tarfile.TarError, EOFError, KeyError, OSError, ValueError) as error:
        raise BadFile(f"{path.name} cannot be read ({error}): delete it, run again") from error


def mapping(value: object) -> dict[str, object]:
    """A JSON object as a dict; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def plain_code(code: str) -> str:
    """Code points as the sets agree on them: lower case, without the variation selector."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def side(value: object, otherwise: float) -> float:
    """A number of an icon's box, or `otherwise` where the file has none."""
    return float(value) if isinstance(value, int | float) else otherwise


@dataclass(frozen=True)
class IconSet:
    """A package's drawings: name → SVG text, name → its characters, and the credits."""

    svgs: dict[str, str]
    codes: dict[str, str]  # code points, e.g. "1f34e", without variation selectors → name
    credit: str


def read_set(key: str, cache: Path) -> IconSet:
    """All visible icons of a style's set, framed with its margin, and the letters in that style."""
    style = STYLES[key]
    path = tarball(style.package, style.version, cache)
    icons = mapping(read_json(path, "package/icons.json"))
    svgs = {
        name: svg(mapping(icon), icons, style.margin)
        for name, icon in mapping(icons.get("icons")).items()
        if not mapping(icon).get("hidden")
    }
    svgs |= {f"letter-{a}": letter_svg(a, key, style.margin) for a in STROKES}
    characters = mapping(read_json(path, "package/chars.json"))
    codes = {plain_code(code): str(name) for code, name in characters.items()}
    about = mapping(read_json(path, "package/info.json"))
    author, licence = mapping(about.get("author")), mapping(about.get("license"))
    credit = (
        f"{style.folder}/: {about.get('name')} by {author.get('name')}, {author.get('url')}; "
        f"licence {licence.get('spdx')}, {licence.get('url')}; "
        f"npm package {style.package} {style.version}"
    )
    return IconSet(svgs, codes, credit)


def svg(icon: Mapping[str, object], icons: Mapping[str, object], margin: float) -> str:
    """A whole SVG around an icon's body: its own box where it has one, else the set's."""
    left, top = (side(icon.get(key), 0) for key in ("left", "top"))
    width, height = (side(icon.get(key), side(icons.get(key), 16)) for key in ("width", "height"))
    pad = margin * max(width, height)
    box = f"{left - pad:g} {top - pad:g} {width + 2 * pad:g} {height + 2 * pad:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon.get("body")}</svg>'
    )


@dataclass(frozen=True)
class Concept:
    """One thing that every set draws."""

    stem: str  # "red-apple"
    code: str  # "1f34e"
    icons: dict[str, str]  # style key → icon name in that set

    @property
    def name(self) -> str:
        """The name without a table of names: "red apple"."""
        return self.stem.replace("-", " ")


def concepts(sets: Mapping[str, IconSet]) -> list[Concept]:
    """The concepts that all sets draw, without skin tones and text-like icons, and the letters.

    Sets are matched by character, because their names differ ("person-elf", "elf"); Fluent's own
    package lists no characters, but shares its names with the flat one. Noto's names are kept.
    """
    shared = {
        f"letter-{a}": Concept(f"letter-{a}", "", dict.fromkeys(STYLES, f"letter-{a}"))
        for a in STROKES
    }
    for code, flat in sorted(sets["flat"].codes.items()):
        others = {key: sets[key].codes.get(code) for key in ("noto", "twemoji")}
        icons = {"fluent": flat, "flat": flat} | {k: v for k, v in others.items() if v is not None}
        drawn = all(key in icons and icons[key] in sets[key].svgs for key in STYLES)
        if not drawn or SKIN_TONE.search(code) or TEXT_LIKE.match(icons["noto"]):
            continue
        shared.setdefault(icons["noto"], Concept(icons["noto"], code, icons))
    return [shared[stem] for stem in sorted(shared)]
