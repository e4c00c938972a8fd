"""txt2img models convert: weights in another precision, quantisation, file format or layout."""

from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options.completion import known_models
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import log, print_path, progress
from txt2img.system.text import format_size

Source = Annotated[
    str,
    typer.Argument(
        metavar="IN", help="A model's name or path, or a weight file.", autocompletion=known_models
    ),
]
Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="A new .safetensors or .gguf file, or a new folder."),
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="TYPE",
        help="fp32, fp16, bf16; fp8, int8 (as ComfyUI stores them); gguf:Q8_0, gguf:Q6_K, "
        "gguf:Q5_K, gguf:Q4_K, gguf:Q4_0 … (default: as stored).",
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="diffusers|single|network",
        help="A folder; one file of all parts; or the network alone, as ComfyUI's "
        "diffusion_models (default: by OUT's name, else as IN).",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the path and errors only.")]


def convert_model(
    source: Source, out: Out, to: To = None, layout: Layout = None, quiet: Quiet = False
) -> None:
    """Convert a model or a weight file, and check what was written. Prints OUT.

    Memory holds one tensor at a time. Small layers that matter much stay wide.
    """
    from txt2img.weights.convert.convert import Report, convert, plan

    chosen, report = plan(source, out, to, layout), Report()
    with progress(not quiet, out.name) as bar:
        for step in convert(chosen, report):
            bar.advance(step.doing, step.done, step.total, "")
    if not quiet:
        for note in chosen.notes:
            log(f"Note: {note}")
        layer, error = report.worst
        accuracy = (
            f"largest relative error {error:.2g}, of {layer}" if error else "every value is equal"
        )
        log(f"{out.name}: {len(report.errors):,} tensors, {format_size(chosen.nbytes)}; {accuracy}")
    print_path(out)


COMMAND: Command = (
    convert_model,
    "Example: txt2img models convert flux1-dev.safetensors flux1-dev-Q4_K.gguf --to gguf:Q4_K",
)
