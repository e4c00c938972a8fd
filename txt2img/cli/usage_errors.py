"""Messages for a command line that cannot be parsed: what was got, and what to do."""

from collections.abc import Iterable
from difflib import SequenceMatcher

import typer

from txt2img.system.text import shown

# Options of other programs that do not mean the same as one here, or may mean several; those that
# do are in options/aliases.py.
OTHER_PROGRAMS_OPTIONS = {
    **dict.fromkeys(("--size", "--resolution"), "use -W 512 -H 512"),
    **dict.fromkeys(("--w", "--W", "-w", "--image-width"), "use --width or -W"),
    **dict.fromkeys(("--h", "--H", "--image-height"), "use --height or -H"),
    "-h": "use --help, or -H for the height",
    "-v": "use --verbose, or --version",
    "-s": "use --steps, or --seed",
    "-S": "use --seed",
    "-b": "use --count, or --batch-size",
    "--uncond": "use --negative",
    **dict.fromkeys(("--guidance", "--scale"), "use --cfg"),
    "--scheduler": "use --sampler and --schedule",
    "--n-samples": "use --count, or --batch-size",
    **dict.fromkeys(("--file", "--prompt-file"), "use --prompts"),
    "--diffusion-model": "use --model, or --unet for a file without VAE and text encoder",
    **dict.fromkeys(("--fp16", "--half", "--precision", "--type"), "use --dtype fp16"),
    **dict.fromkeys(("--gpu", "--cuda"), "use --device cuda; a GPU is used by default"),
    **dict.fromkeys(("--medvram", "--lowvram"), "use --offload model or --offload sequential"),
    **dict.fromkeys(("--xformers", "--opt-sdp-attention"), "attention is fast by default"),
    **dict.fromkeys(("--controlnet", "--control-image"), "ControlNet is not supported"),
}


def message_for(error: typer.TyperException, command: str = "") -> str:
    """One line for an error of typer in a line of `command` ("" is the one that draws)."""
    name = f"txt2img {command}".strip()
    option = getattr(error, "option_name", None)
    if option and "requires an argument" in error.message:
        return f"{option} needs a value; {name} --help describes it"
    if option:
        return _unknown_option(option, getattr(error, "possibilities", None) or (), command)
    message = " ".join(error.format_message().split())
    if not isinstance(error, typer.BadParameter):
        return message
    if error.message and error.param is not None:
        return f"{max(error.param.opts, key=len)} {error.message}"
    return f"{message.rstrip('.')}; see {name} --help"


def _unknown_option(got: str, possibilities: Iterable[str], command: str) -> str:
    name = f"txt2img {command}".strip()
    spelled = got.replace("_", "-")
    nearest = sorted(possibilities, key=lambda o: -SequenceMatcher(None, spelled, o).ratio())
    near = ", ".join(nearest)
    hint = OTHER_PROGRAMS_OPTIONS.get(spelled) if not command else None
    hint = hint or (f"did you mean {near}?" if near else f"{name} --help lists them")
    if not command and not got.startswith("--"):
        hint += "; a prompt that begins with a hyphen goes last, after --"
    return f"no option {shown(got)}; {hint}"
