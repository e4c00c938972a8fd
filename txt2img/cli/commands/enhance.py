"""txt2img enhance: print prompts as a language model rewrites them, without drawing."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import typer

from txt2img.cli import requests
from txt2img.cli.enhance import enhance_texts
from txt2img.cli.options.command import grouped
from txt2img.cli.options.device import DeviceName, DeviceOptions
from txt2img.cli.options.enhance import CONFIGURED, EnhanceOptions
from txt2img.cli.options.picture import ModelName
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import log, print_line, progress
from txt2img.errors import BadRequest, EnhanceFailed
from txt2img.request.input_image import STDIN

EPILOG = """
\b
Examples:
  txt2img enhance "a cat" --enhance http://127.0.0.1:11434/v1#qwen3:4b
  txt2img enhance "a cat" --model sdxl --enhance ./Qwen3-1.7B
  txt2img enhance - < ideas.txt | txt2img --prompts - --seed 1 -o art/

Without --enhance, [enhance] in config.toml says which language model. A server's
key is in TXT2IMG_ENHANCE_KEY.
"""
Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT", help="What to draw; - reads a prompt a line.", show_default=False
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print prompts and errors only.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with an error if a prompt is not rewritten.")
]


@grouped
def enhance(
    options: EnhanceOptions,
    prompts: Prompts = None,
    model: ModelName = None,
    device: DeviceName = None,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Print prompts as a language model rewrites them for the model that will draw, a line each."""
    from txt2img.weights.checkpoint import open_checkpoint

    asked = replace(options, enhance=options.enhance or CONFIGURED).settings()
    assert asked is not None
    texts = [*_texts(prompts or [])]
    checkpoint = open_checkpoint(model or "default")
    with progress(not quiet, "rewriting") as bar:
        results = enhance_texts(texts, asked, checkpoint, DeviceOptions(device=device), bar)
        for text, result in zip(texts, results, strict=True):
            with bar.paused():
                if isinstance(result, EnhanceFailed):
                    if strict:
                        raise result
                    log(f"Note: --enhance: {result}; the prompt stays as written")
                print_line(text if isinstance(result, EnhanceFailed) else result)


def _texts(prompts: list[str]) -> Iterator[str]:
    """The prompts of a command line; those of standard input, a line each. BadRequest."""
    if prompts == [STDIN] or (not prompts and requests.has_piped_input()):
        prompts = requests.read_prompt().splitlines()
    if not prompts:
        raise BadRequest('no prompt; try txt2img enhance "a cat"')
    yield from (prompt for prompt in prompts if prompt.strip())


COMMAND: Command = enhance, EPILOG
