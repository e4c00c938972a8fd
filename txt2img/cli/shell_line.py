"""Command line that draws a request, quoted for a shell."""

import shlex

from txt2img.request.adapters import add_lora_tags
from txt2img.request.fields import FIELDS
from txt2img.request.input_image import UNNAMED, ImageRef, map_images
from txt2img.request.request import Request
from txt2img.system.text import escape

IMAGE = ImageRef("IMAGE")  # for the user to fill in


def command_line(request: Request) -> str:
    """The command line of a request: one line, without control characters."""
    words = []
    for name, field in FIELDS.items():
        value = getattr(request, name)
        if field.listed:
            named = map_images(value, lambda ref: IMAGE if ref == ImageRef(UNNAMED) else ref)
            assert isinstance(named, tuple)
            words += [word for one in named for word in (field.flags[0], shell_quote(str(one)))]
        if not field.scalar or value == field.default:
            continue
        flag, text = field.flags[0], str(value)
        if field.kind is bool:
            words.append(flag)
            continue
        text = name.upper() if value == ImageRef(UNNAMED) else text
        # A text that begins with a hyphen is a value only after a long flag's "=".
        joined = text.startswith("-")
        words += [f"{flag}={shell_quote(text)}"] if joined else [flag, shell_quote(text)]
    if request.vae is not None:
        words.append(f"--vae={shell_quote(request.vae.name)}")
    if request.refiner is not None:
        words.append(
            f"--refiner={shell_quote(f'{request.refiner.name}:{request.refiner_switch:g}')}"
        )
    prompt = shell_quote(add_lora_tags(request.prompt, request.loras))
    if request.prompt.startswith("-"):
        return " ".join(["txt2img", *words, "--", prompt])
    # A single word may be a command's name.
    command = ["txt2img", "generate"] if request.prompt.isalpha() else ["txt2img"]
    return " ".join([*command, prompt, *words])


def shell_quote(text: str) -> str:
    """A text as one word of a shell; as $'…' if it has invisible characters."""
    if escape(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_ansi(c) for c in text) + "'"


def _ansi(c: str) -> str:
    if c in "'\\":
        return f"\\{c}"
    if escape(c) == c:
        return c
    code = ord(c)
    if code < 128:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
