"""A request as the command line that draws it."""

import shlex

from txt2img.request.adapters import add_lora_tags
from txt2img.request.fields import FIELDS
from txt2img.request.request import Request
from txt2img.system.text import escape


def command_line(request: Request) -> str:
    """The line for a shell, on one line and with nothing in it that a terminal obeys."""
    words = []
    for name, field in FIELDS.items():
        value = getattr(request, name)
        if not field.plain or value == field.default:
            continue
        flag, text = field.flags[0], str(value)
        # After a long flag's = even a text that begins with a hyphen is a value.
        words += [f"{flag}={quoted(text)}"] if text.startswith("-") else [flag, quoted(text)]
    if request.vae is not None:
        words.append(f"--vae={quoted(request.vae.name)}")
    if request.refiner is not None:
        words.append(f"--refiner={quoted(f'{request.refiner.name}:{request.refiner_switch:g}')}")
    prompt = quoted(add_lora_tags(request.prompt, request.loras))
    if request.prompt.startswith("-"):
        return " ".join(["txt2img", *words, "--", prompt])
    # One word might be a command's name.
    command = ["txt2img", "generate"] if request.prompt.isalpha() else ["txt2img"]
    return " ".join([*command, prompt, *words])


def quoted(text: str) -> str:
    """A text as one word of a shell; as $'…' if signs are in it that would not be seen."""
    if escape(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(_ansi(c) for c in text) + "'"


def _ansi(c: str) -> str:
    if c in "'\\":
        return f"\\{c}"
    if escape(c) == c:
        return c
    code = ord(c)
    return (
        f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"
    )
