"""The default model's data set: emoji artwork by package name → an archive of captioned pictures.

`python -m txt2img.train.default_model.build_dataset --out artwork.zip --size 128` fetches pinned
icon sets from the npm registry, draws every concept that all of them have, and writes a zip in the
Hub's imagefolder convention: `3d/red-apple.webp`, transparent and lossless, and `metadata.jsonl`
with its captions. The same packages give the same bytes.
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
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from txt2img.errors import BadRequest, Txt2imgError
from txt2img.train.data import HELD_OUT_FILE, METADATA
from txt2img.train.default_model.captions import (
    BACKGROUNDS,
    Row,
    keywords_by_code,
    rows,
    synonyms,
)
from txt2img.train.default_model.icons import (
    STYLES,
    WORDS_FILE,
    WORDS_PACKAGE,
    WORDS_VERSION,
    Concept,
    IconSet,
    concepts,
    read_json,
    read_set,
    tarball,
)
from txt2img.train.default_model.scenes import Thing, main_hue, scenes

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold


@dataclass(frozen=True)
class Options:
    """What is drawn."""

    size: int  # pixels
    styles: Sequence[str]  # keys of STYLES
    cache: Path
    backgrounds: float = 1.0  # coloured grounds a picture, on average
    views: float = 0.0  # of each picture, moved, smaller or mirrored, on average
    scenes: int = 0  # of each style
    seed: int = 0
    names: Sequence[str] = ()  # of concepts; all without any
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


# --- The archive ---------------------------------------------------------------------------------


def draw(
    wanted: Sequence[Concept], sets: Mapping[str, IconSet], options: Options
) -> dict[str, dict[str, bytes]]:
    """Style key → concept stem → picture, for the concepts that could be drawn in every style."""
    drawn: dict[str, dict[str, bytes]] = {}
    for key in options.styles:
        start, pictures = time.monotonic(), {}
        svgs = [sets[key].svgs[concept.icons[key]] for concept in wanted]
        for concept, picture in zip(
            wanted, render_all(svgs, options.size, options.quality), strict=True
        ):
            if picture is None:
                tell(f"{key}: {concept.stem} cannot be drawn and is left out")
            else:
                pictures[concept.stem] = picture
        drawn[key] = pictures
        tell(f"{key}: {len(pictures)} pictures in {time.monotonic() - start:.0f} s")
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


def chosen(found: list[Concept], names: Sequence[str]) -> list[Concept]:
    """The concepts of these names, all without any; BadRequest for a name that no set has."""
    renamed = sum(len(set(concept.icons.values())) > 1 for concept in found)
    tell(f"{len(found)} concepts are in every set, {renamed} of them under differing names")
    known = {concept.name for concept in found}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadRequest(f"no concept {name!r} is in every set{hint}")
    return [concept for concept in found if not names or concept.name in names]


def build(out: Path, options: Options) -> dict[str, int]:
    """Write the archive; how many concepts, pictures and rows (training samples) it holds."""
    # 1. Read every set, also those that are not drawn: together they say what the concepts are.
    tell("reading the icon sets; npm fetches those that are not here yet")
    sets = {key: read_set(style, options.cache) for key, style in STYLES.items()}
    words = read_json(tarball(WORDS_PACKAGE, WORDS_VERSION, options.cache), WORDS_FILE)
    wanted = chosen(concepts(sets), options.names)

    # 2. Draw.
    drawn = draw(wanted, sets, options)
    wanted = [concept for concept in wanted if concept.stem in drawn[options.styles[0]]]

    # 3. Say what is drawn, alone and in scenes.
    others = synonyms({c.name: c.code for c in wanted}, keywords_by_code(words))
    lines, kept = told(wanted, drawn, others, options)
    texts = {
        METADATA: json_lines(lines),
        HELD_OUT_FILE: json_lines(kept),
        "credits.txt": "".join(sets[key].credit + "\n" for key in options.styles),
    }
    files = [(name, text.encode()) for name, text in texts.items() if text]
    for key in options.styles:
        folder = STYLES[key].folder
        files += [(f"{folder}/{stem}.webp", picture) for stem, picture in drawn[key].items()]
    write_archive(out, files)
    pictures = sum(len(part) for part in drawn.values())
    counts = {"concepts": len(wanted), "pictures": pictures, "rows": len(lines)}
    return counts | ({"held-out scenes": len(kept)} if kept else {})


def told(
    wanted: Sequence[Concept],
    drawn: Mapping[str, Mapping[str, bytes]],
    others: Mapping[str, Sequence[str]],
    options: Options,
) -> tuple[list[Row], list[dict[str, object]]]:
    """The rows to be taught, and the scenes that are held out, of each combination one a style."""
    lines: list[Row] = []
    kept: dict[tuple[str, ...], dict[str, object]] = {}
    for key in options.styles:
        things = things_of(key, wanted, drawn[key], hues=options.scenes > 0)
        for thing in things:
            lines += rows(
                thing.file,
                thing.name,
                thing.style,
                others[thing.name],
                options.backgrounds,
                options.seed,
                options.views,
            )
        for scene in scenes(things, options.scenes, options.seed):
            if scene.held_out:
                held = {"kind": scene.kind, "combination": scene.combination, **scene.row}
                kept[scene.kind, *scene.combination, key] = held
            else:
                lines.append(scene.row)
    return lines, list(kept.values())


def things_of(
    key: str, wanted: Sequence[Concept], pictures: Mapping[str, bytes], hues: bool
) -> list[Thing]:
    """What a style draws, each with the hue that it may be turned from, where `hues` are needed."""
    style = STYLES[key]
    return [
        Thing(
            concept.name,
            style.words,
            f"{style.folder}/{concept.stem}.webp",
            main_hue(pictures[concept.stem]) if hues else None,
        )
        for concept in wanted
    ]


def json_lines(rows: Sequence[Mapping[str, object]]) -> str:
    """A JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tell(line: str) -> None:
    """Progress, to stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def names_in(path: Path) -> list[str]:
    """The names in a file, one a line; blank lines and those that begin with # are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--concepts {path.name} cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


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
    add("--concepts", type=Path, help="a file of the concepts to draw, one a line (all)")
    add("--backgrounds", type=float, default=1, help="coloured grounds a picture, on average (1)")
    add("--views", type=float, default=0, help="views a picture, moved, smaller, mirrored (0)")
    add("--scenes", type=int, default=0, help="scenes of each style: counts, relations, … (0)")
    add("--quality", type=int, help="of lossy pictures, 1 to 100 (lossless)")
    add("--seed", type=int, default=0, help="chooses backgrounds and scenes (0)")
    add("--cache", type=Path, default=home / "txt2img" / "packages", help="where packages are kept")
    options = parser.parse_args(arguments)
    options.styles = [name.strip() for name in options.styles.split(",")]
    for name in options.styles:
        if name not in STYLES:
            raise BadRequest(f"no style {name!r}: choose from {', '.join(STYLES)}")
    options.names = [] if options.concepts is None else names_in(options.concepts)
    if not 16 <= options.size <= 1024:
        raise BadRequest(f"--size is {options.size}: use 16 to 1024 pixels")
    if not 0 <= options.backgrounds <= len(BACKGROUNDS):
        raise BadRequest(f"--backgrounds is {options.backgrounds}: use 0 to {len(BACKGROUNDS)}")
    if not 0 <= options.views <= 100:
        raise BadRequest(f"--views is {options.views}: use 0 to 100")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise BadRequest(f"--quality is {options.quality}: use 1 to 100")
    if options.scenes < 0:
        raise BadRequest(f"--scenes is {options.scenes}: use 0 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the archive as the command line says; the process's exit code."""
    try:
        options = parse(arguments)
        try:
            import resvg_py  # noqa: F401
        except ImportError as error:
            raise BadRequest("resvg_py is missing: pip install 'txt2img[train]'") from error
        start, out = time.monotonic(), options.out
        wanted = {field.name: getattr(options, field.name) for field in fields(Options)}
        counts = build(out, Options(**wanted))
    except Txt2imgError as error:
        tell(f"Error: {error}")
        return error.exit_code
    except OSError as error:
        tell(f"Error: cannot write {error.filename}: {error.strerror}")
        return 1
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    megabytes, seconds = out.stat().st_size / 1e6, time.monotonic() - start
    tell(f"{told}, {megabytes:.1f} MB, {seconds:.0f} s")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
