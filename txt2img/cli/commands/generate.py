"""txt2img "prompt": draw pictures. The default command."""

from dataclasses import replace
from typing import Annotated

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.command import grouped
from txt2img.cli.options.picture import PromptOptions
from txt2img.cli.registry import Command
from txt2img.cli.run_options import RunOptions
from txt2img.cli.terminal.console import print_line
from txt2img.cli.terminal.results import errors_on_stdout
from txt2img.errors import UnknownLayout
from txt2img.system.version import __version__

EPILOG = """
\b
Examples:
  txt2img "red apple, 3d emoji"
  txt2img "red apple, 3d emoji" --steps 30 --cfg 7.5 --seed 42 -o apple.png
  txt2img "a green tree" --count 4 -o trees/
  txt2img "a cat" -m models/sd15.safetensors -W 512 -H 512 -n "blurry"
  txt2img --prompts prompts.txt --seed 1 -o art/ --resume
  txt2img "a cat" --sweep cfg=2..6:2 --sweep sampler=euler,heun -o cats/
  txt2img "a green apple" --image apple.png --strength 0.6
  txt2img --params-from apple.png --seed 43

\b
Exit codes:
  0  all done                    4  a picture was rejected, or not finite
  1  a model, file or disk       5  out of memory
  2  an option, prompt or size   130, 143  stopped (Ctrl-C, SIGTERM): once
  3  some pictures failed             finishes the picture, twice stops now

\b
Commands (each has its own --help):
  txt2img generate "train"   Draw, even if the prompt is a command's name.
  txt2img info FILE...       Print what pictures and weight files contain.
  txt2img models VERB        List, show, convert and pull models.
  txt2img samplers           List samplers and schedules.
  txt2img replay FILE...     Draw pictures again from their records.
  txt2img verify FILE...     Draw pictures again and compare.
  txt2img decode FILE...     Decode saved latents to pictures.
  txt2img upscale FILE...    Make pictures larger.
  txt2img preprocess FILE... Make maps of pictures for ControlNets.
  txt2img enhance PROMPT...  Print prompts rewritten by a language model.
  txt2img train DATA         Train a model, LoRA, word or ControlNet.
  txt2img serve              Answer APIs and a page in the browser.
  txt2img worker status|stop List or stop the workers of --keep-alive.
  txt2img again [--count N]  Draw what was drawn last, with new seeds.
  txt2img env                Print versions, devices and folders.
  txt2img help TOPIC         Describe one topic, such as memory or mask, with
                             options seldom used, which are not listed here.
"""


def _print_version(requested: bool) -> None:
    if requested:
        print_line(f"txt2img {__version__}")
        raise typer.Exit


Profile = Annotated[  # read by ConfiguredCommand, before all others
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        autocompletion=completion.profiles,
        help="Use the options of [profiles.NAME] in config.toml.",
    ),
]
Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
]


@grouped
def generate(
    context: typer.Context,
    source: PromptOptions,
    options: RunOptions,
    profile: Profile = None,
    version: Version = False,
) -> None:
    """Draw a picture from a text prompt. Prints the path of each picture it writes.

    Other commands, from info to serve, are listed at the end.
    """
    # these import much, which completion does not need
    from txt2img.cli.requests import from_arguments
    from txt2img.cli.run import run

    prompts = [text for text in (source.prompt, source.prompt_option) if text is not None]
    prompts += context.args
    with errors_on_stdout(options.output.json):
        options.check()
        options, notes = without_misfits(context, options)
        is_named = context.command_path.endswith(" generate")
        batch = from_arguments(prompts, source.prompts, source.params_from, options, is_named)
        batch.notes += notes
        raise typer.Exit(run(batch, options, context))


def without_misfits(context: typer.Context, options: RunOptions) -> tuple[RunOptions, list[str]]:
    """The options without config.toml's LoRAs that do not fit the model, and a note on each.

    A default that suits one model is not forced upon others. Txt2imgError.
    """
    source = context.get_parameter_source("lora")
    if not options.adapters.lora or source is None or source.name != "DEFAULT_MAP":
        return options, []
    from txt2img.cli.options.adapters import lora_file
    from txt2img.weights.checkpoint import open_checkpoint
    from txt2img.weights.file_summary import check_lora

    checkpoint = open_checkpoint(options.picture.model or "default")
    kept, notes = [], []
    for text in options.adapters.lora:
        try:
            check_lora(lora_file(text)[1], checkpoint.family, checkpoint.name)
            kept.append(text)
        except UnknownLayout as error:
            notes.append(f"{error}; config.toml's --lora {text} is left out")
    return replace(options, adapters=replace(options.adapters, lora=kept)), notes


COMMAND: Command = generate, EPILOG
