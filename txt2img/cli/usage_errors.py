"""Messages for a command line that cannot be parsed: what was got, and what to do."""

from collections.abc import Iterable
from difflib import SequenceMatcher

import typer
from typer.core import TyperArgument

from txt2img.system.text import shown

# Options of other programs that do not mean the same as one here, or may mean several; those that
# do are in options/aliases.py.
OTHER_PROGRAMS_OPTIONS = {
    **dict.fromkeys(("--size", "--resolution"), "use -W 512 -H 512"),
    **dict.fromkeys(("--w", "--W", "-w", "--image-width"), "use --width or -W"),
    **dict.fromkeys(("--h", "--H", "--image-height"), "use --height or -H"),
    "-v": "use --verbose, or --version",
    "-s": "use --steps, or --seed",
    "-S": "use --seed",
    "-b": "use --count, or --batch-size",
    "--uncond": "use --negative",
    "--scale": "use --cfg",
    "--scheduler": "use --sampler and --schedule",
    "--n-samples": "use --count, or --batch-size",
    **dict.fromkeys(("--file", "--prompt-file"), "use --prompts"),
    "--diffusion-model": "use --model, or --unet for a file without VAE and text encoder",
    **dict.fromkeys(("--fp16", "--half", "--precision", "--type"), "use --dtype fp16"),
    **dict.fromkeys(
        ("--no-half", "--no-half-vae", "--full-precision", "--upcast-sampling", "--force-fp32"),
        "use --dtype float32, or --dtype vae=float32 for the VAE alone",
    ),
    **dict.fromkeys(("--gpu", "--cuda"), "use --device cuda; a GPU is used by default"),
    **dict.fromkeys(("--cpu", "--use-cpu"), "use --device cpu"),
    **dict.fromkeys(
        ("--medvram", "--lowvram", "--low-vram", "--lowram", "--novram", "--medvram-sdxl"),
        "use --max-memory 4GB, or --low-memory",
    ),
    **dict.fromkeys(
        ("--xformers", "--opt-sdp-attention", "--opt-split-attention", "--flash-attention"),
        "attention is fast by default",
    ),
    **dict.fromkeys(("--num", "--number", "--images", "--num-samples", "-c", "-N"), "use --count"),
    **dict.fromkeys(("--img2img", "--init"), "use --image"),
    "--batch": "use --count, or --batch-size",
    "--seeds": "use --sweep seed=1,2,3, or --seed and --count",
    **dict.fromkeys(("--no", "--negprompt"), "use --negative"),
    **dict.fromkeys(("--ar", "--aspect", "--aspect-ratio"), "use a size, as -W 512 -H 288"),
    "--style": "write the style in the prompt, or use --lora",
    **dict.fromkeys(("--loras", "--lora-scale", "--lora-weight"), "use --lora FILE:0.8"),
    **dict.fromkeys(("--ti", "--textual-inversion"), "use --embedding"),
    "--hypernetwork": "hypernetworks are not supported",
    **dict.fromkeys(
        ("--restore-faces", "--facefix", "--face-restorer", "--gfpgan", "--codeformer"),
        "there is no face restoration",
    ),
    **dict.fromkeys(
        ("--hires-fix", "--enable-hr", "--hr-scale", "--hr-upscaler"),
        "use --hires 2, or --hires 2:UPSCALER",
    ),
    "--upscaler": "use --upscale",
    **dict.fromkeys(("--variation", "--variations"), "use --subseed 7 --subseed-strength 0.2"),
    **dict.fromkeys(
        ("--safe", "--nsfw", "--disable-safety-checker", "--no-safety-checker", "--no-watermark"),
        "no picture is filtered or marked",
    ),
    **dict.fromkeys(
        ("--debug", "--log-level"), "use --verbose, or TXT2IMG_DEBUG=1 for where an error arose"
    ),
    "--config": "options come from config.toml; TXT2IMG_CONFIG names another file",
    **dict.fromkeys(("--threads", "--num-threads", "-t"), "set OMP_NUM_THREADS=4"),
    **dict.fromkeys(
        ("--api", "--listen", "--port", "--share", "--webui", "--gradio"),
        "txt2img serve is a server; --keep-alive keeps the model loaded between calls",
    ),
    **dict.fromkeys(("--list-models", "--list-controlnets"), "use txt2img models list"),
    **dict.fromkeys(("--list-samplers", "--samplers"), "txt2img samplers lists them"),
    "--canny": "use --preprocess canny",
    **dict.fromkeys(
        ("--control-start", "--control-end", "--control-guidance-start", "--control-guidance-end"),
        "use --control MODEL:IMAGE:WEIGHT:START..END",
    ),
}


ALIKE = 0.75  # how alike an option is that may be meant, 0 to 1
HINTS_MAX = 2


def message_for(error: typer.TyperException, command: str = "") -> str:
    """One line for an error of typer in a line of `command` ("" is the one that draws)."""
    name = f"txt2img {command}".strip()
    option = getattr(error, "option_name", None)
    if option and "requires an argument" in error.message:
        return f"{option} needs a value; {name} --help describes it"
    if option:
        return _unknown_option(option, getattr(error, "possibilities", None) or (), command)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else name
    param = getattr(error, "param", None)
    if not error.message and isinstance(param, TyperArgument):  # it is missing
        return f"{path} needs {param.display_name_raw}; see {path} --help"
    message = " ".join(error.format_message().split())
    if not isinstance(error, typer.BadParameter):
        return message
    if error.message and param is not None:
        return f"{max(param.opts, key=len)} {error.message}"
    return f"{message.rstrip('.')}; see {path} --help"


def _unknown_option(got: str, possibilities: Iterable[str], command: str) -> str:
    name = f"txt2img {command}".strip()
    spelled = got.replace("_", "-")
    hint = OTHER_PROGRAMS_OPTIONS.get(spelled) if not command else None
    if hint is None and (closest := _nearest(spelled, possibilities)):
        hint = f"did you mean {' or '.join(closest)}?"
    if hint is None:
        hint = f"{name} --help lists them"
        if not command and not got.startswith("--"):
            hint += "; a prompt that begins with a hyphen goes last, after --"
    return f"no option {shown(got)}; {hint}"


def _nearest(option: str, possibilities: Iterable[str]) -> list[str]:
    """The options that may be meant: one if it is nearly the same."""
    alike = {known: SequenceMatcher(None, option, known).ratio() for known in possibilities}
    best = sorted((known for known in alike if alike[known] >= ALIKE), key=lambda o: -alike[o])
    return best[:HINTS_MAX]
