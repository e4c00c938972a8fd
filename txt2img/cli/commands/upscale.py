"""txt2img upscale: make pictures larger, by interpolation or by a model."""

import glob
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli import distributed
from txt2img.cli.options import completion
from txt2img.cli.options.device import DeviceName, DeviceOptions, Dtype
from txt2img.cli.options.output import (
    FormatName,
    Json,
    OutputName,
    OutputOptions,
    Overwrite,
    Quality,
    Quiet,
)
from txt2img.cli.options.types import integer, number
from txt2img.cli.registry import Command
from txt2img.cli.run_options import StdoutOutput, check_stdout
from txt2img.cli.terminal.console import Bar, log, print_json, print_path, progress
from txt2img.cli.terminal.results import print_file_error
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import formats, image_file, output
from txt2img.images.image_file import FILE_MAX
from txt2img.images.input_image import InputImage, open_image
from txt2img.images.output import Output
from txt2img.images.record import ImageInfo, pixels_sha256
from txt2img.images.upscaled import upscaled_texts
from txt2img.request import Request
from txt2img.request.upscalers import (
    OF_PIXELS,
    SCALE_MAX,
    Interpolation,
    UpscalerRef,
    parse_upscaler,
)
from txt2img.system import launcher
from txt2img.system.files import read_bounded
from txt2img.system.text import shown

if TYPE_CHECKING:
    from PIL import Image

    from txt2img.weights.upscaler import Upscaler

EPILOG = """
\b
Examples:
  txt2img upscale apple.png
  txt2img upscale photos/ --model 4x-UltraSharp -o large/
  txt2img upscale *.png --model models/upscale_models/2x.safetensors --scale 3
"""
STDIO = "-"
SCALE = 2.0  # of an interpolation
TILES = range(64, 8193)
SUFFIXES = (*(suffix for form in formats.FORMATS.values() for suffix in form.suffixes),)
SUFFIXES += (".gif", ".bmp", ".tif", ".tiff")
RESULT = re.compile(r"(.+)-\d+(?:\.\d+)?x(?:-\d+)?", re.DOTALL)
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="Pictures, folders of them, or - for standard input."),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        autocompletion=completion.upscalers,
        help=f"{', '.join(OF_PIXELS)}, or an upscaler's .safetensors file, which needs spandrel: "
        "pip install --no-deps spandrel einops",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        metavar="X",
        parser=number,
        help="How many times as wide and high (default: the model's own scale, or 2).",
    ),
]
TileSize = Annotated[
    int | None,
    typer.Option(
        "--tile-size",
        metavar="PIXELS",
        parser=integer,
        help="Side of the tiles that a model sees (default: as memory allows); 0 for no tiles.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip pictures whose result is there.")]


@dataclass(frozen=True)
class UpscaleSettings:
    """The settings of one run of the command."""

    upscaler: "Upscaler | Interpolation"
    ref: UpscalerRef
    scale: float
    tile: int | None
    options: OutputOptions
    format: formats.Format
    resume: bool
    several: bool

    def target(self, name: str) -> Output:
        """Where the result of a picture goes: to --output, or next to it. BadRequest."""
        options = self.options
        if options.out == STDIO:
            return StdoutOutput(self.format)
        if options.out is not None:
            return output.parse(options.out, self.several, options.overwrite, self.format)
        folder = Path() if name == STDIO else Path(name).parent
        pattern = output.default_pattern(self.format)
        return Output(folder, pattern, overwrite=options.overwrite, format=self.format)

    def file_name(self, target: Output, name: str, request: Request | None, index: int) -> str:
        """The file's name: that of the picture with the scale, unless --output says another."""
        if target.pattern != output.default_pattern(target.format):
            return target.name(request or Request(""), index)
        stem = "picture" if name == STDIO else Path(name).stem
        return f"{stem}{scale_suffix(self.scale)}{target.format.suffix}"


def upscale(
    files: Files,
    model: ModelName = Interpolation.LANCZOS.value,
    scale: Scale = None,
    tile_size: TileSize = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    out: OutputName = None,
    format: FormatName = None,
    quality: Quality = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make pictures larger, keeping their metadata. Prints the path of each result."""
    check(scale, tile_size, resume, overwrite)
    options = OutputOptions(out, None, overwrite, format, quality, False, json, quiet)
    options.check()
    form = options.picture_format(lambda name: True)
    names = [*pictures(files)]
    if out == STDIO:
        check_stdout(len(names) > 1)
    code = 0
    with progress(not quiet, "loading") as bar:
        upscaler, ref, own_scale = load(model, DeviceOptions(device, dtype))
        settings = UpscaleSettings(
            upscaler, ref, scale or own_scale, tile_size, options, form, resume, len(names) > 1
        )
        for number, name in launcher.current().shard(enumerate(names)):
            try:
                upscale_one(name, number, len(names), settings, bar)
            except Txt2imgError as error:
                with bar.paused():
                    print_file_error(name, error, json)
                code = code or error.exit_code
    if code := distributed.gather_results(code, None)[0]:
        raise typer.Exit(code)


def check(scale: float | None, tile: int | None, resume: bool, overwrite: bool) -> None:
    """Raise BadRequest for values that cannot be, or options that exclude each other."""
    if scale is not None and not 0 < scale <= SCALE_MAX:
        raise BadRequest(f"--scale must be above 0 and at most {SCALE_MAX:g}, got {scale:g}")
    if tile and tile not in TILES:
        raise BadRequest(f"--tile-size must be 0 or {TILES[0]} … {TILES[-1]:,}, got {tile:,}")
    if resume and overwrite:
        raise BadRequest("--resume keeps existing pictures, --overwrite replaces them")


def load(
    model: str, device: DeviceOptions
) -> tuple["Upscaler | Interpolation", UpscalerRef, float]:
    """The upscaler of a name or path, what records call it, and its scale. Txt2imgError."""
    ref = parse_upscaler(model)
    if (how := ref.interpolation) is not None and not os.path.exists(model):
        if how.of_latents:
            raise BadRequest(f"{how} is for latents, with --hires; choose {', '.join(OF_PIXELS)}")
        return how, ref, SCALE
    from txt2img.weights.registry.find import find_upscaler
    from txt2img.weights.upscaler import load_upscaler

    upscaler = load_upscaler(find_upscaler("--model", model), device.choose_device())
    return upscaler, UpscalerRef(upscaler.name, upscaler.hash), float(upscaler.scale)


def pictures(names: Sequence[str]) -> Iterator[str]:
    """The pictures of these names: files, those in folders, and what patterns match. BadFile.

    Folders' pictures that are results, as apple-2x.png beside apple.png, are left out.
    """
    for name in names:
        if name != STDIO and not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise BadFile(f"no picture matches {shown(name)}")
            yield from matches
        elif os.path.isdir(name):
            yield from folder_pictures(Path(name))
        else:
            yield name


def folder_pictures(folder: Path) -> Iterator[str]:
    """The pictures in a folder by name, without results that lie beside them. BadFile."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name[:1] != ".")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadFile(f"cannot read {shown(str(folder))}: {reason}") from error
    named = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not named:
        raise BadFile(f"{shown(str(folder))} has no pictures")
    stems = {path.stem for path in named}
    for path in named:
        match = RESULT.fullmatch(path.stem)
        if match is None or match[1] not in stems:
            yield str(path)


def upscale_one(name: str, number: int, count: int, settings: UpscaleSettings, bar: Bar) -> None:
    """Upscale one of `count` pictures, write it and print its path. Txt2imgError."""
    started, data = time.perf_counter(), read(name)
    small, info = open_image(BytesIO(data), name), read_texts(data, name)
    target = settings.target(name)
    file_name = settings.file_name(target, name, info.request, number + 1)
    if settings.resume and os.path.lexists(target.folder / file_name):
        return
    with target:
        image = enlarged(small, name, number, count, settings, bar)
        check_transparency(image, target.format)
        hashes = pixels_sha256(small.pixels), pixels_sha256(image)
        texts = upscaled_texts(info, settings.ref, settings.scale, *hashes)
        path = target.write_as(image_file.encode_texts(image, texts, target.format), file_name)
    with bar.paused():
        for line in () if settings.options.quiet else small.notes:
            log(line)
        if settings.options.json:
            about = {"file": name, "path": str(path), "size": [*image.size]}
            by = {"upscaler": settings.ref.name, "hash": settings.ref.hash, "scale": settings.scale}
            seconds = round(time.perf_counter() - started, 3)
            print_json({**about, **by, "seconds": seconds, "pixels_sha256": hashes[1]})
        elif path != Path(STDIO):
            print_path(path)


def read(name: str) -> bytes:
    """The bytes of a file, or of standard input. BadFile."""
    if name != STDIO:
        return read_bounded(Path(name), FILE_MAX)
    data = sys.stdin.buffer.read(FILE_MAX + 1)
    if not 0 < len(data) <= FILE_MAX:
        what = "nothing came" if not data else f"more than {FILE_MAX >> 20} MiB came"
        raise BadFile(f"{what} on standard input")
    return data


def read_texts(data: bytes, name: str) -> ImageInfo:
    """What a picture says of itself: nothing if its format is none that programs write texts in."""
    try:
        return image_file.read_stream(BytesIO(data), name)
    except BadFile:
        return ImageInfo(0, 0, {})


def check_transparency(image: "Image.Image", form: formats.Format) -> None:
    """Raise BadRequest for a transparent picture in a format that has no transparency."""
    if image.mode == "RGBA" and form.name == "JPEG":
        raise BadRequest("it is transparent in parts, which no JPEG can be; choose --format png")


def scale_suffix(scale: float) -> str:
    """The end of a result's name: -4x."""
    return f"-{scale:g}x"


def enlarged(
    small: InputImage, name: str, number: int, count: int, settings: UpscaleSettings, bar: Bar
) -> "Image.Image":
    """The picture at its new size, with progress on the bar. BadRequest, OutOfMemory."""
    from txt2img.pipeline.upscale import upscale_image

    size = (round(small.size[0] * settings.scale), round(small.size[1] * settings.scale))
    image = None
    for step in upscale_image(small.pixels, settings.upscaler, size, settings.tile):
        done, total = number * step.total + step.done, count * step.total
        remark = f"tile {step.done}/{step.total}" if step.total > 1 else ""
        bar.advance("upscaling", done, total, remark, Path(name).name if count > 1 else "")
        image = step.image
    assert image is not None
    return image


COMMAND: Command = upscale, EPILOG
