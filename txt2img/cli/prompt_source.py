"""A command line's prompt: from standard input, and warnings if it may not be meant as one."""

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from txt2img.cli.registry import MODEL_VERBS, NAMES, OTHER_VERBS
from txt2img.errors import BadFile, BadRequest
from txt2img.request.prompt_line import LONG
from txt2img.request.request import PROMPT_MAX
from txt2img.system.text import shown

SWITCHES = ("yes", "no", "true", "false", "on", "off")
CURLY = "“”„‟«»\u2018\u201a"
COMMANDS = {
    **{verb: f"txt2img models {verb}" for verb in MODEL_VERBS},
    **{word: f"txt2img models {verb}" for word, verb in OTHER_VERBS.items() if verb == "pull"},
    **dict.fromkeys(("/help", "/h", "/?", "?", "usage", "man"), "txt2img --help"),
    "serve": "a prompt with --keep-alive, which starts a worker",
    "server": "a prompt with --keep-alive, which starts a worker",
    "convert": "--model with the file, which needs no conversion",
    "version": "txt2img --version",
}
_OPTION = re.compile(r"(?:^|(?<=\s))--[A-Za-z][\w-]*(?:[=\s]\S+)?")
_NAMES = "|".join(option[2:] for option in LONG)
_DASH = re.compile(rf"(?:^|(?<=\s))[–—]{{1,2}}(?:{_NAMES})\b(?:\s\S+)?")  # typed as two hyphens


def has_piped_input() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_prompt() -> str:
    """The prompt that standard input is. BadFile, BadRequest."""
    content = sys.stdin.buffer.read(4 * PROMPT_MAX + 1)
    try:
        prompt = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadFile("standard input is not UTF-8 text") from error
    if not prompt:
        raise BadRequest('no prompt on standard input; try txt2img "red apple, 3d emoji"')
    return prompt


def warnings(prompt: str, is_named: bool) -> Iterator[str]:
    """The warnings about a prompt as an argument; `is_named` if `generate` stands before it."""
    if not is_named and (command := _command(prompt.strip())):
        yield f"{shown(prompt)} is drawn as a prompt; or did you mean {command}?"
    if prompt.strip()[:1] in tuple(CURLY):
        yield f"prompt: {prompt.strip()[0]} is part of it; the shell reads straight quotes only"
    if option := _OPTION.search(prompt) or _DASH.search(prompt):
        yield f"prompt: {shown(option[0])} is part of it; close its quotes before the options"


def too_many_prompts(words: Sequence[str]) -> str:
    """The error for several prompts: quotes are missing, or a command is misspelt."""
    if any(word[:1] in tuple(CURLY) for word in words):
        text = " ".join(words).strip(CURLY)
        return f"{len(words)} prompts; the shell reads straight quotes only: {shown(text)}"
    if dash := next((word for word in words if _DASH.match(word)), None):
        return f"{len(words)} prompts; {shown(dash)} has a dash: write --{dash.lstrip('–—')}"
    if (value := words[1].lower()) in SWITCHES:
        return (
            f"2 prompts; an option that is on or off takes no value, such as {value}: leave it out"
        )
    near = COMMANDS.get(words[0], "").removeprefix("txt2img ")
    near = near or next(iter(get_close_matches(words[0], NAMES, n=1)), "")
    hint = f"; or did you mean the command {near}?" if near else ""
    return f"{len(words)} prompts; put the prompt in quotes: {shown(' '.join(words))}{hint}"


def _command(word: str) -> str:
    """What a lone word may be meant as, if not as a prompt."""
    near = get_close_matches(word, NAMES, n=1, cutoff=0.8)
    return COMMANDS.get(word.lower(), f"txt2img {near[0]}" if near else "")
