"""txt2img preprocess: make the maps of pictures that a ControlNet follows."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.command import grouped
from txt2img.cli.options.device import DeviceName, DeviceOptions
from txt2img.cli.picture_files import Files, Made, ResultOptions, Source, pictures, write_each
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import log, progress
from txt2img.images.preprocess import import_opencv, map_texts
from txt2img.images.preprocess import preprocess as draw_map
from txt2img.request.preprocess import Preprocess, Preprocessor, parse_preprocess
from txt2img.request.resolve import AdapterPaths

if TYPE_CHECKING:
    from PIL import Image

    Draw = Callable[[Image.Image], Image.Image]

EPILOG = """
\b
Examples:
  txt2img preprocess apple.png
  txt2img preprocess photos/ --preprocess lineart -o lines/
  txt2img preprocess room.jpg --preprocess canny:50,150 -o - > edges.png
  txt2img preprocess room.jpg --preprocess depth:models/depth-anything-small
  txt2img preprocess team.jpg --preprocess pose:models/vitpose-base,models/rtdetr
"""
RESULT = f"-(?:{'|'.join(Preprocessor)})"
Name = Annotated[
    str,
    typer.Option(
        "--preprocess",
        "-p",
        metavar="NAME[:N,…]|NAME:MODEL",
        autocompletion=completion.preprocessors,
        help=f"{', '.join(kind for kind in Preprocessor if not kind.model)}, by OpenCV (pip "
        "install --no-deps opencv-python-headless), with numbers such as canny:100,200; or depth, "
        "segment or pose with the folder of a model of transformers, and pose with a second one "
        "that finds people.",
    ),
]


@grouped
def preprocess(
    files: Files,
    name: Name = Preprocessor.CANNY.value,
    device: DeviceName = None,
    *,
    results: ResultOptions,
) -> None:
    """Make the control map of each picture: its edges, lines or depths. Prints their paths."""
    how = parse_preprocess(name)
    names = [*pictures(files, RESULT)]
    run = results.run(names, f"-{how.name}")
    with progress(not results.quiet, "loading") as bar:
        how, draw, notes = load(how, DeviceOptions(device))
        with bar.paused():
            for line in () if results.quiet else notes:
                log(line)
        facts = {"preprocess": str(how)} | ({"hash": how.hash} if how.hash else {})

        def make(source: Source) -> Made:
            image = draw(source.image.rgb())
            bar.advance("preprocessing", source.number + 1, source.count, "", source.label)
            return Made(image, map_texts(how), facts)

        write_each(names, run, make, bar)


def load(how: Preprocess, device: DeviceOptions) -> "tuple[Preprocess, Draw, list[str]]":
    """A preprocessor as records call it, what makes its maps, and notes. Txt2imgError."""
    if not how.name.model:
        import_opencv()
        return how, partial(draw_map, how=how), []
    from txt2img.pipeline.preprocess import preprocess_image
    from txt2img.weights.annotator import load_annotator
    from txt2img.weights.control_file import find_annotator

    paths = AdapterPaths()
    how = find_annotator(how, paths)
    loaded = load_annotator(how, paths.annotators, device.choose_device())
    how = replace(how, hash=loaded.hash)
    return how, partial(preprocess_image, how=how, annotator=loaded), paths.images.notes


COMMAND: Command = preprocess, EPILOG
