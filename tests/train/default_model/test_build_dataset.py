"""The default model's data set: what is taken, how it is called, how it is packed."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from txt2img.errors import BadFile, BadRequest
from txt2img.train.data import Pictures
from txt2img.train.default_model import build_dataset, icons
from txt2img.train.default_model.captions import held_out, words_in
from txt2img.train.default_model.letters import STROKES
from txt2img.train.default_model.names import Names
from txt2img.train.default_model.scenes import KINDS

DISC = '<circle cx="8" cy="8" r="8" fill="#d00"/>'
CODES = {
    "1f34e": "red-apple",
    "1f415": "dog",
    "1f46e": "police-officer",
    "1f46e-1f3fb": "police-officer-light",
    "31-20e3": "keycap-1",
    "1f9dd": "person-elf",
}
KEYWORDS = {
    "emojis": {
        "apple": {"keywords": ["fruit", "Dog", "x-1"], "skins": [{"unified": "1F34E-FE0F"}]},
        "dog": {"keywords": ["puppy", "animal_friend"], "skins": [{"unified": "1f415"}]},
    }
}


def pack(cache: Path, package: str, version: str, files: dict[str, object]) -> None:
    """Put an npm archive into the cache folder."""
    name = f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"
    with tarfile.open(cache / name, "w:gz") as archive:
        for path, content in files.items():
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache folder with four tiny icon sets; Fluent's has no list of characters."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for key, style in icons.STYLES.items():
        own = {"person-elf": "elf"} if key in ("noto", "twemoji") else {}
        codes = {code: own.get(name, name) for code, name in CODES.items()}
        drawn: dict[str, dict[str, object]] = {name: {"body": DISC} for name in codes.values()}
        drawn["fruit"] = {"body": DISC, "hidden": True}
        files: dict[str, object] = {
            "package/icons.json": {"icons": drawn, "width": 16, "height": 16},
            "package/chars.json": {} if key == "fluent" else codes,
            "package/info.json": {"name": f"Set {key}", "license": {"spdx": "MIT"}},
        }
        pack(folder, style.package, style.version, files)
    pack(folder, icons.KEYWORDS_PACKAGE, icons.KEYWORDS_VERSION, {icons.KEYWORDS_FILE: KEYWORDS})
    return folder


NAMES = {
    "red-apple": Names("apple", ("red apple",), ("fruit",)),
    "dog": Names("dog", (), ("hound",)),
    "police-officer": Names("police officer", ("cop",)),
    "elf": Names("elf"),
}


def build(
    cache: Path,
    out: Path,
    styles: tuple[str, ...] = ("fluent", "noto"),
    names: dict[str, Names] | None = NAMES,
    scenes: int = 0,
) -> list[dict]:
    """Build an archive at 32 pixels; the rows of its metadata."""
    pytest.importorskip("resvg_py")
    options = build_dataset.Options(32, styles, cache, scenes=scenes, names=names)
    build_dataset.build(out, options)
    with zipfile.ZipFile(out) as archive:
        return [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]


def test_concepts_are_matched_by_character_without_tones(cache: Path) -> None:
    sets = {key: icons.read_set(key, cache) for key in icons.STYLES}
    shared = {concept.name: concept for concept in icons.concepts(sets)}
    letters = {f"letter {letter}" for letter in STROKES}
    assert shared.keys() == {"dog", "elf", "keycap 1", "police officer", "red apple", *letters}
    assert shared["elf"].icons == {
        "fluent": "person-elf",
        "flat": "person-elf",
        "noto": "elf",
        "twemoji": "elf",
    }


def test_a_concept_that_one_set_lacks_is_left_out(cache: Path) -> None:
    sets = {key: icons.read_set(key, cache) for key in icons.STYLES}
    del sets["twemoji"].svgs["dog"]
    assert "dog" not in [concept.name for concept in icons.concepts(sets)]


def test_hidden_icons_are_not_read(cache: Path) -> None:
    assert "fruit" not in icons.read_set("noto", cache).svgs


def test_the_margin_widens_the_box_on_every_side() -> None:
    text = icons.svg({"body": "", "left": 1, "width": 20}, {"width": 10, "height": 10}, 0.1)
    assert 'viewBox="-1 -2 24 14"' in text


def test_the_archive_holds_every_concept_in_every_style(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "artwork.zip"
    rows = build(cache, out)
    stems = ("dog", "elf", "police-officer", "red-apple")
    pictures = {f"{style}/{stem}.webp" for style in ("3d", "noto") for stem in stems}
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == sorted(
            {"credits.txt", "metadata.jsonl", "words.json", *pictures}
        )
        assert "licence MIT" in archive.read("credits.txt").decode()
    assert {row["file_name"] for row in rows} == pictures
    assert len(rows) == 2 * len(pictures)


def test_pictures_are_transparent_and_of_the_size(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "artwork.zip"
    build(cache, out, ("twemoji",))
    with zipfile.ZipFile(out) as archive:
        image = Image.open(io.BytesIO(archive.read("twemoji/dog.webp")))
    assert (image.mode, image.size) == ("RGBA", (32, 32))
    assert image.getpixel((0, 0))[3] == 0
    assert image.getpixel((16, 16)) == (221, 0, 0, 255)
    assert image.getpixel((16, 0))[3] < 255  # the margin


def test_lossy_pictures_are_smaller_and_nearly_the_same() -> None:
    pytest.importorskip("resvg_py")
    fade = '<linearGradient id="a"><stop stop-color="#f00"/><stop offset="1" stop-color="#00f"/>'
    body = f'{fade}</linearGradient><circle cx="8" cy="8" r="8" fill="url(#a)"/>'
    drawn = icons.svg({"body": body}, {}, 0.0)
    exact, lossy, least = (build_dataset.render(drawn, 256, quality) for quality in (None, 90, 10))
    assert len(least) < len(lossy)
    one, other = (Image.open(io.BytesIO(data)).getpixel((64, 128)) for data in (exact, lossy))
    assert all(abs(a - b) < 12 for a, b in zip(one, other, strict=True))


def test_scenes_are_taught_or_held_out(cache: Path, tmp_path: Path) -> None:
    build(cache, tmp_path / "a.zip", names=None, scenes=60)
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        rows, kept = (
            [json.loads(line) for line in file.read(name).splitlines()]
            for name in ("metadata.jsonl", "heldout.jsonl")
        )
    assert sum("layers" in row for row in rows) + len(kept) > 100
    assert {row["kind"] for row in kept} <= set(KINDS)
    assert all(held_out(row["kind"], *row["combination"]) for row in kept)
    said = {text for row in rows for text in row["text"]}
    assert not said & {row["text"][0] for row in kept}
    pictures = Pictures(tmp_path / "a.zip")
    for row in range(len(pictures.rows)):
        assert pictures.pixels(row, 32).shape == (3, 32, 32)


def test_the_same_packages_give_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    build(cache, one, ("noto",))
    build(cache, two, ("noto",))
    assert one.read_bytes() == two.read_bytes()


def test_drawing_goes_on_after_an_icon_that_ends_the_child() -> None:
    pytest.importorskip("resvg_py")
    good = icons.svg({"body": DISC}, {}, 0.0)
    deep = icons.svg({"body": "<g>" * 1000 + DISC + "</g>" * 1000}, {}, 0.0)  # overflows its stack
    drawn = list(build_dataset.render_all([good, deep, "<nonsense", good], 16))
    assert len(drawn) == 4
    assert drawn[0] == drawn[3] is not None
    assert drawn[2] is None


def test_a_picture_wider_than_high_is_centred() -> None:
    pytest.importorskip("resvg_py")
    wide = icons.svg({"body": '<path d="M0 0h16v8H0z"/>', "height": 8}, {}, 0.0)
    image = Image.open(io.BytesIO(build_dataset.render(wide, 32)))
    assert image.size == (32, 32)
    assert [image.getpixel((16, y))[3] for y in (2, 16, 29)] == [0, 255, 0]


def test_without_npm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BadRequest, match="npm is needed"):
        icons.tarball("@iconify-json/noto", "1.2.9", tmp_path)


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    path = tmp_path / "noto-1.tgz"
    path.write_bytes(b"not an archive")
    with pytest.raises(BadFile, match=r"noto-1\.tgz cannot be read"):
        icons.read_json(path, "package/icons.json")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--styles", "fluent,pixel"], "no style 'pixel'"),
        (["--size", "4"], "--size is 4"),
        (["--backgrounds", "99"], "--backgrounds is 99"),
        (["--scenes", "-1"], "--scenes is -1"),
        (["--quality", "0"], "--quality is 0"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    option: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_dataset.main(["--out", str(tmp_path / "a.zip"), *option]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_pictures_that_were_drawn_before_are_not_drawn_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(cache, tmp_path / "one.zip", ("noto",))
    monkeypatch.setattr(build_dataset, "render", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(
        build_dataset, "render_all", lambda svgs, *_: iter(svgs and pytest.fail("drawn again"))
    )
    build(cache, tmp_path / "two.zip", ("noto",))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_words_lead_to_the_things_that_they_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_dataset, "PLAIN_WORD", 2)  # the archive is small
    rows = build(cache, tmp_path / "a.zip", scenes=40)
    table = json.loads(zipfile.ZipFile(tmp_path / "a.zip").read("words.json"))
    words = table["words"]
    assert words["hound"] == words["dog"] == ["dog"]
    assert words["police"] == ["police officer"]
    assert words["fruit"] == words["red"] == ["apple"]
    assert words["on"] == words["emoji"] == words["the"] == []
    assert {"4k", "masterpiece", "cute"} <= set(table["ignored"])
    assert not set(words) & set(table["ignored"])
    said = words_in([text for row in rows for text in row["text"]])
    assert set(words) <= said | {"friend", "animal", "puppy"}


def test_an_icon_that_no_set_has_is_told_with_the_nearest(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"no icon 'dogg'.*did you mean 'dog'"):
        build(cache, tmp_path / "x.zip", names={"dogg": Names("dog")})


def test_what_is_drawn_can_be_chosen(cache: Path, tmp_path: Path) -> None:
    rows = build(cache, tmp_path / "a.zip", ("noto",), {"dog": Names("dog")})
    assert {row["file_name"] for row in rows} == {"noto/dog.webp"}
