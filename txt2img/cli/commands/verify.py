"""txt2img verify: draw pictures again from their records, and compare."""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from txt2img.cli import distributed
from txt2img.cli.options.adapters import AdapterOptions
from txt2img.cli.options.command import grouped
from txt2img.cli.options.device import DeviceName, DeviceOptions, Dtype
from txt2img.cli.options.input import ImageDirs, image_places
from txt2img.cli.options.output import Json, Quiet
from txt2img.cli.options.picture import ModelName
from txt2img.cli.options.types import number
from txt2img.cli.provenance import request_of, require_model
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import log, print_json, print_line, progress
from txt2img.cli.terminal.results import print_file_error
from txt2img.errors import Txt2imgError
from txt2img.request.resolve import AdapterPaths
from txt2img.system import launcher

if TYPE_CHECKING:
    from txt2img.images.record import ImageInfo
    from txt2img.pipeline.verify import Verdict
    from txt2img.weights.model import Model

EPILOG = """
\b
Examples:
  txt2img verify picture.png
  txt2img verify *.png --model models/sd15.safetensors --json
  txt2img verify art/ --psnr 40

Exit code 0 if all are identical (or within --psnr), else 1.
"""
Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Pictures by txt2img, or folders of them.")
]
Psnr = Annotated[
    float | None,
    typer.Option(
        "--psnr",
        metavar="DB",
        parser=number,
        help="Accept differences up to this PSNR; 40 dB is hardly visible.",
    ),
]


@grouped
def verify(
    files: Files,
    adapters: AdapterOptions,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    psnr: Psnr = None,
    image_dir: ImageDirs = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw pictures again and compare them pixel by pixel."""
    from txt2img.pipeline import verify as verifier

    code, counts, loaded = 0, Counter[str](), cast("Model | None", None)
    library = replace(adapters.library(), images=image_places(image_dir))
    names = [*launcher.current().shard(chain(*map(verifier.list_pictures, files)))]
    with progress(not quiet, "loading") as bar:
        for i, name in enumerate(names):
            bar.advance("verifying", i, len(names), f"{i + 1}/{len(names)}")
            try:
                info = read_verifiable(Path(name), model, library)
                loaded = loaded or DeviceOptions(device, dtype).load_model(
                    model or "default", library
                )
                verdict = verifier.verify(Path(name), info, loaded, psnr is not None)
            except Txt2imgError as error:
                with bar.paused():
                    print_file_error(name, error, json)
                result, failed = "not comparable", error.exit_code
            else:
                with bar.paused():
                    print_verdict(name, verdict, json)
                result = rated(verdict, psnr)
                failed = int(result == "different")
            code, counts[result] = code or failed, counts[result] + 1
    if len(names) > 1 and not quiet:
        log(", ".join(f"{count} {result}" for result, count in counts.items()))
    if code := distributed.gather_results(code, None)[0]:
        raise typer.Exit(code)


def read_verifiable(path: Path, model: str | None, library: AdapterPaths) -> "ImageInfo":
    """A picture's record; what it began from is looked for beside it. Txt2imgError."""
    from txt2img.pipeline import verify as verifier

    info = verifier.read_verifiable(path)
    require_model(path, request_of(path, info), model)
    library.images.beside[:] = [path.parent]
    return info


def rated(verdict: "Verdict", psnr: float | None) -> str:
    """A verdict as identical, near (within `psnr` decibels) or different."""
    if verdict.same:
        return "identical"
    return "near" if psnr is not None and verdict.psnr >= psnr else "different"


def print_verdict(name: str, verdict: "Verdict", json: bool) -> None:
    """Print a file's verdict."""
    if json:
        psnr = None if verdict.same else round(verdict.psnr, 2)
        print_json(
            {"file": name, "same": verdict.same, "psnr": psnr, "reasons": list(verdict.reasons)}
        )
    elif verdict.same:
        print_line(f"{name}: identical")
    else:
        print_line(f"{name}: PSNR {verdict.psnr:.1f} dB; {'; '.join(verdict.reasons)}")


COMMAND: Command = verify, EPILOG
