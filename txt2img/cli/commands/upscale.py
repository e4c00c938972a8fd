"""txt2img upscale: make pictures larger, by interpolation or by a model."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.command import grouped
from txt2img.cli.options.device import DeviceName, DeviceOptions, Dtype
from txt2img.cli.options.types import integer, number
from txt2img.cli.picture_files import Files, Made, ResultOptions, Source, pictures, write_each
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import Bar, progress
from txt2img.errors import BadRequest
from txt2img.images.record import pixels_sha256
from txt2img.images.upscaled import upscaled_texts
from txt2img.request.upscalers import (
    OF_PIXELS,
    SCALE_MAX,
    Interpolation,
    UpscalerRef,
    parse_upscaler,
)

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
SCALE = 2.0  # of an interpolation
TILES = range(64, 8193)
RESULT = r"-\d+(?:\.\d+)?x"
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


@grouped
def upscale(
    files: Files,
    model: ModelName = Interpolation.LANCZOS.value,
    scale: Scale = None,
    tile_size: TileSize = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    *,
    results: ResultOptions,
) -> None:
    """Make pictures larger, keeping their metadata. Prints the path of each result."""
    check(scale, tile_size)
    names = [*pictures(files, RESULT)]
    run = results.run(names, "")
    with progress(not results.quiet, "loading") as bar:
        upscaler, ref, own_scale = load(model, DeviceOptions(device, dtype))
        factor = scale or own_scale

        def make(source: Source) -> Made:
            image = enlarged(source, upscaler, factor, tile_size, bar)
            hashes = pixels_sha256(source.image.pixels), pixels_sha256(image)
            texts = upscaled_texts(source.info, ref, factor, *hashes)
            return Made(image, texts, {"upscaler": ref.name, "hash": ref.hash, "scale": factor})

        write_each(names, replace(run, ending=f"-{factor:g}x"), make, bar)


def check(scale: float | None, tile: int | None) -> None:
    """Raise BadRequest for values that cannot be."""
    if scale is not None and not 0 < scale <= SCALE_MAX:
        raise BadRequest(f"--scale must be above 0 and at most {SCALE_MAX:g}, got {scale:g}")
    if tile and tile not in TILES:
        raise BadRequest(f"--tile-size must be 0 or {TILES[0]} … {TILES[-1]:,}, got {tile:,}")


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


def enlarged(
    source: Source,
    upscaler: "Upscaler | Interpolation",
    scale: float,
    tile: int | None,
    bar: Bar,
) -> "Image.Image":
    """The picture at its new size, with progress on the bar. BadRequest, OutOfMemory."""
    from txt2img.pipeline.upscale import upscale_image

    width, height = source.image.size
    size = (round(width * scale), round(height * scale))
    image = None
    for step in upscale_image(source.image.pixels, upscaler, size, tile):
        done, total = source.number * step.total + step.done, source.count * step.total
        remark = f"tile {step.done}/{step.total}" if step.total > 1 else ""
        bar.advance("upscaling", done, total, remark, source.label)
        image = step.image
    assert image is not None
    return image


COMMAND: Command = upscale, EPILOG
