"""txt2img verify: draw pictures again from what they say of themselves, and compare."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli import distributed
from txt2img.cli.grouped import grouped
from txt2img.cli.load_model import load_model
from txt2img.cli.names import Command
from txt2img.cli.options import types
from txt2img.cli.options.adapters import AdapterFileOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.provenance import request_with_model
from txt2img.cli.terminal.console import log, print_json, print_line, progress
from txt2img.cli.terminal.results import print_file_error
from txt2img.errors import Txt2imgError
from txt2img.system import launcher

if TYPE_CHECKING:
    from txt2img.pipeline.verify import Verdict
    from txt2img.weights.model import Model

EPILOG = """
\b
Examples:
  txt2img verify picture.png
  txt2img verify *.png --model models/sd15.safetensors --json
  txt2img verify art/ --psnr 40

Exit code 0 if all are identical (or as near as --psnr asks), else 1.
"""
Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Pictures of txt2img's, or folders.")
]
Psnr = Annotated[
    float | None,
    typer.Option(
        "--psnr",
        metavar="DB",
        parser=types.number("--psnr"),
        help="Be content with pictures this near: 40 dB can hardly be seen.",
    ),
]


@grouped
def verify(
    files: Files,
    model: types.Model = None,
    device: types.DeviceName = None,
    dtype: types.Dtype = None,
    psnr: Psnr = None,
    json: types.Json = False,
    quiet: types.Quiet = False,
    others: AdapterFileOptions = AdapterFileOptions(),  # noqa: B008 - frozen; only its fields' defaults are used
) -> None:
    """Draw pictures again and compare them pixel by pixel."""
    from txt2img.pipeline import verify as judge

    code, counts = 0, Counter[str]()
    loaded: Model | None = None
    names = list(launcher.found().shard(one for name in files for one in judge.pictures(name)))
    with progress(not quiet, "loading") as bar:
        for i, name in enumerate(names):
            bar.advance("verifying", i, len(names), f"{i + 1}/{len(names)}")
            try:
                found = judge.described(Path(name))
                request_with_model(Path(name), found, model)
                if loaded is None:
                    precision = DeviceOptions(device, dtype)
                    loaded = load_model(model or "default", precision, others.library())
                verdict = judge.verify(Path(name), found, loaded, psnr is not None)
            except Txt2imgError as error:
                with bar.paused():
                    print_file_error(name, error, json)
                word, failed = "not comparable", error.exit_code
            else:
                with bar.paused():
                    tell_verdict(name, verdict, json)
                word = rated(verdict, psnr)
                failed = int(word == "different")
            code, counts[word] = code or failed, counts[word] + 1
    if len(names) > 1 and not quiet:
        log(", ".join(f"{count} {word}" for word, count in counts.items()))
    if code := distributed.together(code, None)[0]:
        raise typer.Exit(code)


def rated(verdict: "Verdict", psnr: float | None) -> str:
    """A verdict in a word, where so many decibels are enough."""
    if verdict.same:
        return "identical"
    return "near" if psnr is not None and verdict.psnr >= psnr else "different"


def tell_verdict(name: str, verdict: "Verdict", json: bool) -> None:
    """One file's verdict on stdout."""
    if json:
        near = None if verdict.same else round(verdict.psnr, 2)
        print_json(
            {"file": name, "same": verdict.same, "psnr": near, "reasons": list(verdict.reasons)}
        )
    elif verdict.same:
        print_line(f"{name}: identical")
    else:
        print_line(f"{name}: PSNR {verdict.psnr:.1f} dB; {'; '.join(verdict.reasons)}")


COMMAND: Command = verify, EPILOG
