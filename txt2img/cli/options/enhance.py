"""Options for prompts that a language model rewrites before they are drawn."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from txt2img.cli.options.types import integer, number
from txt2img.errors import BadFile, BadRequest
from txt2img.request.enhance import TEMPERATURE, Instructions, check_temperature
from txt2img.system import user_config
from txt2img.system.files import expand_user, read_bounded
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.system.user_config import UserConfig

CONFIGURED = "config"  # --enhance without a value: the model of [enhance] in config.toml
FILE_MAX = 2**16  # bytes of a system prompt, or of a key
SEEDS = 2**64


@dataclass(frozen=True)
class EnhanceSettings:
    """Settings of prompt rewriting: of the options, else of config.toml."""

    model: str  # a URL or a folder
    instructions: Instructions | None  # None: those for the model that draws
    temperature: float
    seed: int | None  # None: the picture's
    seconds: float | None  # for an answer
    key: str


@dataclass(frozen=True)
class EnhanceOptions:
    """Options for rewriting prompts."""

    section: ClassVar = "Prompt rewriting"

    enhance: Annotated[
        str | None,
        typer.Option(
            "--enhance",
            metavar="[URL|FOLDER]",
            help="Have a language model rewrite prompts: a server with OpenAI's API, such as "
            "http://127.0.0.1:11434/v1#qwen3:4b, or a folder of transformers; without a value, "
            "that of [enhance] in config.toml. --dry-run shows the result.",
        ),
    ] = None
    enhance_prompt: Annotated[
        Path | None,
        typer.Option(
            "--enhance-prompt",
            metavar="FILE",
            help="The language model's instructions (default: ones for the model that draws).",
        ),
    ] = None
    enhance_temperature: Annotated[
        float | None,
        typer.Option(
            "--enhance-temperature",
            metavar="X",
            hidden=True,
            parser=number,
            help=f"Its temperature, 0 to 2: higher is more surprising ({TEMPERATURE:g}).",
        ),
    ] = None
    enhance_seed: Annotated[
        int | None,
        typer.Option(
            "--enhance-seed",
            metavar="N",
            hidden=True,
            parser=integer,
            help="Its seed (default: the picture's).",
        ),
    ] = None

    def settings(self) -> EnhanceSettings | None:
        """The settings; None if no prompt is to be rewritten. BadRequest, BadFile."""
        if self.enhance is None:
            others = (self.enhance_prompt, self.enhance_temperature, self.enhance_seed)
            if any(value is not None for value in others):
                raise BadRequest("--enhance-prompt, -temperature and -seed go with --enhance")
            return None
        config = user_config.read_config()
        model = self.enhance
        if model == CONFIGURED:
            model = _text(config, "model")
            if not model:
                raise BadRequest(
                    "--enhance needs the URL of a server, such as http://127.0.0.1:11434/v1, or a "
                    f"folder: here, or as model in [enhance] of {shown(config.path, 200)}"
                )
        file = self.enhance_prompt or _path(config, "prompt")
        temperature = _number(config, "temperature", self.enhance_temperature, TEMPERATURE)
        seed = config.enhance.get("seed") if self.enhance_seed is None else self.enhance_seed
        if seed is not None and (type(seed) is not int or not 0 <= seed < SEEDS):
            raise BadRequest(f"--enhance-seed must be 0 … 2^64-1, got {shown(seed)}")
        check_temperature("--enhance-temperature", temperature)
        seconds = _number(config, "timeout", None, 0.0)
        return EnhanceSettings(
            model,
            None if file is None else Instructions(_read(file, "--enhance-prompt")),
            temperature,
            seed,
            seconds or None,
            _key(config),
        )


def is_enhancer(text: str) -> bool:
    """Whether a word after --enhance is its value, rather than a prompt or another option."""
    is_path = re.match(r"(?:~|\.{0,2}[/\\]|[A-Za-z]:\\)", text) or os.path.isdir(text)
    return text.lower().startswith(("http://", "https://")) or bool(is_path)


def _key(config: "UserConfig") -> str:
    """The key of a server, from the environment or a file. BadFile."""
    from txt2img.system.chat_endpoint import KEY  # it imports asyncio, which takes 40 ms

    file = _path(config, "key-file")
    return os.environ.get(KEY, "") or ("" if file is None else _read(file, "key-file"))


def _read(path: Path, what: str) -> str:
    try:
        text = read_bounded(path, FILE_MAX).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadFile(f"{what}: {shown(path)} is not UTF-8 text") from error
    if not text:
        raise BadFile(f"{what}: {shown(path)} is empty")
    return text


def _text(config: "UserConfig", key: str) -> str:
    value = config.enhance.get(key, "")
    if not isinstance(value, str):
        raise BadFile(f"{shown(config.path, 200)}: enhance.{key} must be a text")
    return value


def _path(config: "UserConfig", key: str) -> Path | None:
    """A file's path, relative to the config's folder."""
    text = _text(config, key)
    return config.path.parent / expand_user(text) if text else None


def _number(config: "UserConfig", key: str, given: float | None, default: float) -> float:
    value = config.enhance.get(key, default) if given is None else given
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise BadFile(f"{shown(config.path, 200)}: enhance.{key} must be a number from 0 up")
    return float(value)
