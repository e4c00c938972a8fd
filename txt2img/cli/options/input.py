"""Options for a picture to begin from: image to image, inpainting and outpainting."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options.types import field_option
from txt2img.errors import BadFile, BadRequest
from txt2img.images.image_file import FILE_MAX
from txt2img.request.input_image import STDIN, ImagePaths, ImageRef
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths, require_folder

ImageDirs = Annotated[
    list[str] | None,
    typer.Option(
        "--image-dir",
        metavar="DIR",
        help="Look here for the input pictures that a record names. Repeatable.",
    ),
]


@dataclass(frozen=True)
class InputOptions:
    """Options for a picture beside the prompt; None leaves one to the replayed record."""

    section: ClassVar = "Image to image and inpainting"

    image: Annotated[
        str | None,
        field_option(
            "image",
            metavar="FILE|FOLDER|-",
            help="Begin from a picture, or from each of a folder; - is standard input. It keeps "
            "its size without -W and -H.",
        ),
    ] = None
    strength: Annotated[
        float | None,
        field_option(
            "strength",
            metavar="X",
            help="How much to change it: 0 nothing, 1 all (default: 0.75).",
        ),
    ] = None
    resize: Annotated[
        str | None,
        field_option(
            "resize",
            metavar="crop|fill|stretch",
            help="How to fit a picture of another shape to -W and -H (default: crop).",
        ),
    ] = None
    mask: Annotated[
        str | None,
        field_option(
            "mask",
            metavar="FILE|FOLDER",
            help="Repaint only what is white in this picture (default: what is transparent in "
            "--image). For a folder, a folder of masks: X.png or X_mask.png.",
        ),
    ] = None
    mask_blur: Annotated[
        float | None,
        field_option(
            "mask_blur",
            metavar="PIXELS",
            help="Soften the mask's border by this much (default: 4).",
        ),
    ] = None
    mask_invert: Annotated[
        bool | None,
        field_option("mask_invert", metavar="", help="Repaint what is black instead."),
    ] = None
    inpaint_fill: Annotated[
        str | None,
        field_option(
            "inpaint_fill",
            metavar="NAME",
            help="What to begin from under the mask: original (default), fill (the colours "
            "around it), noise or zero.",
        ),
    ] = None
    only_masked: Annotated[
        int | None,
        field_option(
            "only_masked",
            metavar="[PAD]",
            help="Draw the masked part alone, with PAD (32) pixels around it, at -W and -H, and "
            "put it back: small things come out finer.",
        ),
    ] = None
    outpaint: Annotated[
        str | None,
        field_option(
            "outpaint",
            metavar="SIDES",
            help="Continue the picture beyond its edges: all=128, or left=64,up=32 (pixels).",
        ),
    ] = None
    image_cfg: Annotated[
        float | None,
        field_option(
            "image_cfg",
            metavar="X",
            help="How closely InstructPix2Pix models follow the picture (default: 1.5).",
        ),
    ] = None
    reference: Annotated[
        list[str] | None,
        field_option(
            "references",
            metavar="FILE",
            help="A picture for models of edits to look at (FLUX.1 Kontext, FLUX.2 klein). "
            "Repeatable.",
        ),
    ] = None
    image_dir: ImageDirs = None

    def with_places(self, library: AdapterPaths) -> AdapterPaths:
        """The library with the folders of --image-dir. BadRequest, ModelNotFound."""
        return replace(library, images=image_places(self.image_dir))


def read_stdin(requests: Iterable[Request], images: ImagePaths, taken: str = "") -> None:
    """Read the picture on standard input, if a request names it. BadFile, BadRequest.

    `taken` is what else was read from there, if anything.
    """
    named = [request.images.count(ImageRef(STDIN)) for request in requests]
    if not any(named):
        return
    if taken or max(named) > 1:
        both = f"{taken} and a picture" if taken else "two pictures"
        raise BadRequest(f"{both} cannot both come on standard input (-); name a file for one")
    images.stdin = sys.stdin.buffer.read(FILE_MAX + 1)
    if not images.stdin:
        raise BadFile("nothing came on standard input, where the picture - should be")


def image_places(folders: Sequence[str] | None) -> ImagePaths:
    """The folders of --image-dir. ModelNotFound, BadRequest."""
    return ImagePaths(tuple(require_folder("--image-dir", Path(text)) for text in folders or ()))
