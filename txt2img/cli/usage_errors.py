"""What to say of a command line that cannot be read: what was got, what is had, what to do."""

from collections.abc import Iterable
from difflib import SequenceMatcher

import typer
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoSuchOption

from txt2img.system.text import shown

NO_INPUT = "pictures are drawn from text alone: there is no option for one to begin with"
# What other programs call an option, and scripts of theirs ask for: A1111, ComfyUI's and
# diffusers' examples, stable-diffusion.cpp, InvokeAI and the first Stable Diffusion's txt2img.py.
ELSEWHERE = {
    **dict.fromkeys(("--prompt", "-p", "--text"), 'the prompt stands alone: txt2img "a red apple"'),
    **dict.fromkeys(("--negative-prompt", "--neg", "--uncond"), "say --negative"),
    **dict.fromkeys(("--size", "--resolution"), "say -W 512 -H 512"),
    **dict.fromkeys(("--w", "--image-width"), "say --width or -W"),
    **dict.fromkeys(("--h", "--image-height"), "say --height or -H"),
    "-h": "say --help, or -H for the height",
    **dict.fromkeys(
        ("--num-inference-steps", "--ddim-steps", "--sampling-steps", "--sample-steps", "-s"),
        "say --steps",
    ),
    **dict.fromkeys(("--guidance-scale", "--cfg-scale", "--guidance", "--scale"), "say --cfg"),
    **dict.fromkeys(("--sampler-name", "--sampling-method"), "say --sampler"),
    **dict.fromkeys(("--scheduler", "--schedule-type"), "say --sampler and --schedule"),
    **dict.fromkeys(
        ("--num-images-per-prompt", "--num-images", "--n-iter", "--n-samples", "--batch-count"),
        "say --count",
    ),
    **dict.fromkeys(("--outdir", "--output-dir", "--out-dir", "--out"), "say -o FOLDER/"),
    **dict.fromkeys(("--from-file", "--file", "--prompt-file"), "say --prompts"),
    **dict.fromkeys(("--ckpt", "--checkpoint", "--diffusion-model"), "say --model"),
    **dict.fromkeys(("--fp16", "--half", "--precision", "--type"), "say --dtype fp16"),
    **dict.fromkeys(("--gpu", "--cuda"), "say --device cuda; a card is used without asking"),
    **dict.fromkeys(("--medvram", "--lowvram"), "say --offload model or --offload sequential"),
    **dict.fromkeys(("--xformers", "--opt-sdp-attention"), "attention is quick without asking"),
    **dict.fromkeys(
        ("--init-img", "--init-image", "--image", "--mask", "--strength", "-i"), NO_INPUT
    ),
}


def worded(error: typer.TyperException, command: str = "") -> str:
    """One line for what typer found amiss in a line of `command` ("" is the one that draws)."""
    name = f"txt2img {command}".strip()
    if isinstance(error, NoSuchOption):
        got = error.option_name.replace("_", "-")
        near = ", ".join(_nearest_first(got, error.possibilities or ()))
        hint = ELSEWHERE.get(got) if not command else None
        hint = hint or (f"did you mean {near}?" if near else f"{name} --help lists them")
        if not command and not got.startswith("--"):
            hint += "; a prompt that begins with a hyphen goes last, after --"
        return f"no option {shown(error.option_name)}; {hint}"
    if isinstance(error, BadOptionUsage) and "requires an argument" in error.message:
        return f"{error.option_name} needs a value; {name} --help says of what kind"
    said = " ".join(error.format_message().split())
    if isinstance(error, MissingParameter):
        return f"{said.rstrip('.')}; {name} --help shows how to say it"
    return said


def _nearest_first(got: str, names: Iterable[str]) -> list[str]:
    """Options in the order of their likeness to what was got."""
    return sorted(names, key=lambda name: -SequenceMatcher(None, got, name).ratio())
