"""The default model's data set: emoji artwork by package name → an archive of captioned pictures.

`python -m txt2img.train.default_model.build_dataset --out artwork.zip --size 128` fetches pinned
icon sets from the npm registry, draws every concept that all of them have, and writes a zip in the
Hub's imagefolder convention: `3d/red-apple.webp`, transparent and lossless, and `metadata.jsonl`
with its captions, and `words.json`, which says what each word in them stands for. The same packages
give the same bytes.
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from txt2img.errors import BadRequest, Txt2imgError
from txt2img.train.data import HELD_OUT_FILE, METADATA, WORDS_FILE
from txt2img.train.default_model.captions import (
    BACKGROUNDS,
    KEYWORDS,
    Row,
    ignored_words,
    keywords_by_code,
    own_keywords,
    rows,
    words_in,
)
from txt2img.train.default_model.icons import (
    KEYWORDS_FILE,
    KEYWORDS_PACKAGE,
    KEYWORDS_VERSION,
    STYLES,
    Concept,
    IconSet,
    concepts,
    read_json,
    read_set,
    tarball,
)
from txt2img.train.default_model.letters import CREDIT
from txt2img.train.default_model.names import Names, owners_of, read_names, things_by_word
from txt2img.train.default_model.scenes import Thing, colour_of, main_hue, scenes, visible_box

PLAIN_WORD = 12  # rows: words that fewer have, and no name, mean nothing
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold


@dataclass(frozen=True)
class Options:
    """Options of the data set: its sizes, styles and numbers of rows."""

    size: int  # pixels
    styles: Sequence[str]  # keys of STYLES
    cache: Path
    backgrounds: float = 1.0  # coloured grounds a picture, on average
    scenes: int = 0  # of each style
    seed: int = 0
    names: Mapping[str, Names] | None = None  # of the icons that are drawn; all without any
    quality: int | None = None  # 1 … 100 of lossy WebP; None is lossless


# --- Drawing -------------------------------------------------------------------------------------


def render(text: str, size: int, quality: int | None = None) -> bytes:
    """An SVG as a square, transparent WebP of `size` pixels, lossless without a quality."""
    from resvg_py import svg_to_bytes

    # resvg's filters leave jagged edges: drawn at twice the size, they come out smooth
    scale = 2 if "filter=" in text else 1
    side = size * scale
    png = svg_to_bytes(svg_string=text, width=side, height=side, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    drawn = drawn.convert("RGBa").reduce(scale).convert("RGBA")  # averaged with colour × alpha
    # an icon that is not square is drawn as large as it fits, and centred
    square = Image.new("RGBA", (size, size))
    square.paste(drawn, ((size - drawn.width) // 2, (size - drawn.height) // 2))
    out = io.BytesIO()
    lossless = quality is None
    square.save(out, "WEBP", lossless=lossless, quality=80 if lossless else quality, method=4)
    return out.getvalue()


def render_in_child(svgs: Sequence[str], size: int, quality: int | None, pipe: Connection) -> None:
    """Send each picture's bytes, or None where it cannot be drawn (runs in a child process)."""
    for text in svgs:
        try:
            pipe.send(render(text, size, quality))
        except ValueError:
            pipe.send(None)
    pipe.close()


def render_all(
    svgs: Sequence[str], size: int, quality: int | None = None
) -> Iterator[bytes | None]:
    """Each SVG's picture in order; None for one that cannot be drawn.

    resvg aborts the whole process on some icons, so a child draws, and a new one goes on after the
    icon on which the last one died.
    """
    context = multiprocessing.get_context("spawn")
    done = 0
    while done < len(svgs):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=render_in_child, args=(svgs[done:], size, quality, send))
        child.start()
        send.close()
        try:
            while done < len(svgs):
                yield receive.recv()
                done += 1
        except EOFError:
            done += 1
            yield None
        finally:
            receive.close()
            child.join()


def rendered(svgs: Sequence[str], options: Options) -> Iterator[bytes | None]:
    """`render_all`, with pictures that an earlier run drew taken from the cache folder."""
    folder = options.cache / "rendered"
    folder.mkdir(parents=True, exist_ok=True)
    keys = [
        sha256(f"{text} {options.size} {options.quality}".encode()).hexdigest() for text in svgs
    ]
    paths = [folder / f"{key[:32]}.webp" for key in keys]
    missing = [text for text, path in zip(svgs, paths, strict=True) if not path.exists()]
    new = render_all(missing, options.size, options.quality)
    for path in paths:
        if path.exists():
            yield path.read_bytes()
            continue
        picture = next(new)
        if picture is not None:
            partial = path.with_suffix(".partial")
            partial.write_bytes(picture)
            os.replace(partial, path)
        yield picture


# --- The archive ---------------------------------------------------------------------------------


def draw(
    shared: Sequence[Concept], sets: Mapping[str, IconSet], options: Options
) -> dict[str, dict[str, bytes]]:
    """Style key → concept stem → picture, for the concepts that could be drawn in every style."""
    drawn: dict[str, dict[str, bytes]] = {}
    for key in options.styles:
        start, pictures = time.monotonic(), {}
        svgs = [sets[key].svgs[concept.icons[key]] for concept in shared]
        for concept, picture in zip(shared, rendered(svgs, options), strict=True):
            if picture is None:
                log(f"{key}: {concept.stem} cannot be drawn and is left out")
            else:
                pictures[concept.stem] = picture
        drawn[key] = pictures
        log(f"{key}: {len(pictures)} pictures in {time.monotonic() - start:.0f} s")
    everywhere = set.intersection(*(set(pictures) for pictures in drawn.values()))
    return {
        key: {stem: picture for stem, picture in pictures.items() if stem in everywhere}
        for key, pictures in drawn.items()
    }


def write_archive(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """A zip of these files, sorted and without times; it appears only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, content in sorted(files):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = 0o644 << 16
                small = name.endswith(".webp")  # pictures are compressed already
                entry.compress_type = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def chosen(shared: list[Concept], names: Mapping[str, Names] | None) -> list[Concept]:
    """The concepts with these stems, all without any; BadRequest for one that no set has."""
    renamed = sum(len(set(concept.icons.values())) > 1 for concept in shared)
    log(f"{len(shared)} concepts are in every set, {renamed} of them under differing names")
    known = {concept.stem for concept in shared}
    for stem in names or ():
        if stem not in known:
            near = get_close_matches(stem, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadRequest(f"no icon {stem!r} is in every set{hint}")
    return [concept for concept in shared if names is None or concept.stem in names]


def build(out: Path, options: Options) -> dict[str, int]:
    """Write the archive; returns its numbers of concepts, pictures and rows (training samples)."""
    # 1. Read every set, also those that are not drawn: together they say what the concepts are.
    log("reading the icon sets; npm fetches those that are not here yet")
    sets = {key: read_set(key, options.cache) for key in STYLES}
    package = tarball(KEYWORDS_PACKAGE, KEYWORDS_VERSION, options.cache)
    drawn_by_all = chosen(concepts(sets), options.names)

    # 2. Draw.
    drawn = draw(drawn_by_all, sets, options)
    drawn_by_all = [c for c in drawn_by_all if c.stem in drawn[options.styles[0]]]

    # 3. Say what is drawn, alone and in scenes.
    names = {c.stem: (options.names or {}).get(c.stem, Names(c.name)) for c in drawn_by_all}
    keywords = own_keywords(
        {c.stem: c.code for c in drawn_by_all},
        keywords_by_code(read_json(package, KEYWORDS_FILE)),
        set(owners_of(names)),
    )
    lines, held = captioned(names, drawn, keywords, options)
    texts = {
        METADATA: json_lines(lines),
        HELD_OUT_FILE: json_lines(held),
        WORDS_FILE: json.dumps(words_of(names, lines, keywords), ensure_ascii=False) + "\n",
        "credits.txt": "".join(f"{sets[key].credit}\n" for key in options.styles) + f"{CREDIT}\n",
    }
    files = [(name, text.encode()) for name, text in texts.items() if text]
    for key in options.styles:
        folder = STYLES[key].folder
        files += [(f"{folder}/{stem}.webp", picture) for stem, picture in drawn[key].items()]
    write_archive(out, files)
    pictures = sum(len(part) for part in drawn.values())
    counts = {"concepts": len(names), "pictures": pictures, "rows": len(lines)}
    return counts | ({"held-out scenes": len(held)} if held else {})


def captioned(
    names: Mapping[str, Names],
    drawn: Mapping[str, Mapping[str, bytes]],
    keywords: Mapping[str, Sequence[str]],
    options: Options,
) -> tuple[list[Row], list[dict[str, object]]]:
    """The rows for training, and the held-out scenes, one a style of each combination."""
    lines: list[Row] = []
    held_out: dict[tuple[str, ...], dict[str, object]] = {}
    for key in options.styles:
        things = things_of(key, names, drawn[key])
        for stem, thing in things.items():
            lines += rows(
                thing.file,
                thing.names,
                thing.style,
                keywords[stem][:KEYWORDS],
                colour_of(thing.names, thing.hue),
                options.backgrounds,
                options.seed,
            )
        for scene in scenes(list(things.values()), options.scenes, options.seed):
            if scene.held_out:
                line = {"kind": scene.kind, "combination": scene.combination, **scene.row}
                held_out[scene.kind, *scene.combination, key] = line
            else:
                lines.append(scene.row)
    return lines, list(held_out.values())


def things_of(
    key: str, names: Mapping[str, Names], pictures: Mapping[str, bytes]
) -> dict[str, Thing]:
    """Stem → a style's drawing, its hue if it has one, and its bounding box."""
    style = STYLES[key]
    return {
        stem: Thing(
            its,
            style,
            f"{style.folder}/{stem}.webp",
            main_hue(pictures[stem]),
            visible_box(pictures[stem]),
        )
        for stem, its in names.items()
    }


def words_of(
    names: Mapping[str, Names], lines: Sequence[Row], keywords: Mapping[str, Sequence[str]]
) -> dict[str, object]:
    """The vocabulary: each word → the things that it names, and the ignored words.

    Words that only join others ("on", "blue") lead to no thing.
    """
    with_keywords = [
        Names(its.name, its.others, (*its.kinds, *keywords[stem][:KEYWORDS]))
        for stem, its in names.items()
    ]
    words = things_by_word(with_keywords)
    often: dict[str, int] = {}
    for line in lines:
        for word in words_in(line["text"]):
            often[word] = often.get(word, 0) + 1
    ignored = set(ignored_words()) - set(words)
    # a word that few rows have, and no name, was made up to be ignored
    plain = {word for word, count in often.items() if count >= PLAIN_WORD}
    for word in plain - ignored - set(words):
        words[word] = []
    return {"words": dict(sorted(words.items())), "ignored": sorted(ignored)}


def json_lines(rows: Sequence[Mapping[str, object]]) -> str:
    """A JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def log(line: str) -> None:
    """Progress, to stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; BadRequest for values that cannot be used."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(
        "python -m txt2img.train.default_model.build_dataset", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the archive to write, FILE.zip")
    add("--size", type=int, default=128, help="width and height in pixels (128)")
    add("--styles", default="fluent,flat,noto,twemoji", help="icon sets to draw, by commas (all)")
    add("--concepts", type=Path, help="a file of the icons to draw and their names (all)")
    add("--backgrounds", type=float, default=1, help="coloured grounds a picture, on average (1)")
    add("--scenes", type=int, default=0, help="scenes of each style: counts, relations, … (0)")
    add("--quality", type=int, help="of lossy pictures, 1 to 100 (lossless)")
    add("--seed", type=int, default=0, help="chooses backgrounds and scenes (0)")
    add("--cache", type=Path, default=home / "txt2img" / "packages", help="where packages are kept")
    options = parser.parse_args(arguments)
    options.styles = [name.strip() for name in options.styles.split(",")]
    for name in options.styles:
        if name not in STYLES:
            raise BadRequest(f"no style {name!r}: choose from {', '.join(STYLES)}")
    options.names = None if options.concepts is None else read_names(options.concepts)
    if not 16 <= options.size <= 1024:
        raise BadRequest(f"--size is {options.size}: use 16 to 1024 pixels")
    if not 0 <= options.backgrounds <= len(BACKGROUNDS):
        raise BadRequest(f"--backgrounds is {options.backgrounds}: use 0 to {len(BACKGROUNDS)}")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise BadRequest(f"--quality is {options.quality}: use 1 to 100")
    if options.scenes < 0:
        raise BadRequest(f"--scenes is {options.scenes}: use 0 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the archive. Returns the exit code."""
    try:
        options = parse(arguments)
        try:
            import resvg_py  # noqa: F401
        except ImportError as error:
            raise BadRequest("resvg_py is missing: pip install resvg_py") from error
        start, out = time.monotonic(), options.out
        counts = build(out, Options(**{f.name: getattr(options, f.name) for f in fields(Options)}))
    except Txt2imgError as error:
        log(f"Error: {error}")
        return error.exit_code
    except OSError as error:
        log(f"Error: cannot write {error.filename}: {error.strerror}")
        return 1
    summary = ", ".join(f"{count} {what}" for what, count in counts.items())
    megabytes, seconds = out.stat().st_size / 1e6, time.monotonic() - start
    log(f"{summary}, {megabytes:.1f} MB, {seconds:.0f} s")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
