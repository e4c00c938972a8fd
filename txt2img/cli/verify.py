"""txt2img verify: draw pictures again from what they say of themselves, and compare."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img import launch
from txt2img.cli import options
from txt2img.cli.recorded import with_model
from txt2img.cli.results import say_file_error
from txt2img.cli.show import progress, say, say_record, tell
from txt2img.errors import Txt2imgError

if TYPE_CHECKING:
    from txt2img.verify import Verdict
    from txt2img.weights.load import Model

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
        parser=options.number("--psnr"),
        help="Be content with pictures this near: 40 dB can hardly be seen.",
    ),
]


def verify(
    files: Files,
    model: options.Model = None,
    device: options.DeviceName = None,
    dtype: options.Dtype = None,
    psnr: Psnr = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw pictures again and compare them pixel by pixel."""
    from txt2img.verify import pictures

    code, counts = 0, Counter[str]()
    loaded: Model | None = None
    names = list(launch.found().mine(one for name in files for one in pictures(name)))
    with progress(not quiet, "loading") as bar:
        for i, name in enumerate(names):
            bar.advance("verifying", i, len(names), f"{i + 1}/{len(names)}")
            try:
                loaded, verdict = compared(
                    Path(name), model, (device, dtype), loaded, psnr is not None
                )
            except Txt2imgError as error:
                with bar.aside():
                    say_file_error(name, error, json)
                code = code or error.exit_code
                counts["not comparable"] += 1
                continue
            enough = verdict.same or (psnr is not None and verdict.psnr >= psnr)
            code = code or (0 if enough else 1)
            counts["identical" if verdict.same else "near" if enough else "different"] += 1
            with bar.aside():
                tell_verdict(name, verdict, json)
    if len(names) > 1 and not quiet:
        tell(", ".join(f"{count} {word}" for word, count in counts.items()))
    if code:
        raise typer.Exit(code)


def compared(
    path: Path,
    chosen: str | None,
    where: tuple[str | None, str | None],
    loaded: "Model | None",
    lossy: bool,
) -> tuple["Model", "Verdict"]:
    """The verdict on one file, and the model, which is loaded once for all. Txt2imgError."""
    from txt2img.device import choose
    from txt2img.verify import described, verify
    from txt2img.weights.load import load

    found = described(path)
    with_model(path, found, chosen)
    if loaded is None:
        loaded = load(chosen or "default", choose(*where))
    return loaded, verify(path, found, loaded, lossy)


def tell_verdict(name: str, verdict: "Verdict", json: bool) -> None:
    """One file's verdict on stdout."""
    if json:
        near = None if verdict.same else round(verdict.psnr, 2)
        say_record(
            {"file": name, "same": verdict.same, "psnr": near, "reasons": list(verdict.reasons)}
        )
    elif verdict.same:
        say(f"{name}: identical")
    else:
        say(f"{name}: PSNR {verdict.psnr:.1f} dB; {'; '.join(verdict.reasons)}")
