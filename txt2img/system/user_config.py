"""The user's config.toml: default options, profiles, model names and model folders."""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.system.files import (
    NO_CONFIG,
    expand_user,
    read_bounded,
    reason,
    user_folder,
    write_atomic,
)
from txt2img.system.text import nearest, nearest_or_all, shown

CONFIG = "TXT2IMG_CONFIG"  # environment variable with the file's path
SIZE_MAX = 2**20  # bytes
TABLES = ("defaults", "profiles", "models", "paths", "enhance")
ENHANCE = ("model", "prompt", "temperature", "seed", "timeout", "key-file")
Values = Mapping[str, object]


@dataclass(frozen=True)
class ModelSource:
    """The value of a name in [models]: a path, or a Hub id with its revision.

    A model may be named with the files of its parts, which are paths or names in turn.
    """

    target: str
    revision: str = ""
    vae: str = ""
    text_encoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class UserConfig:
    """The content of the config file; empty if there is none."""

    path: Path
    defaults: Values = field(default_factory=dict)
    profiles: Mapping[str, Values] = field(default_factory=dict)
    models: Mapping[str, ModelSource] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()  # with models
    enhance: Values = field(default_factory=dict)  # the language model of --enhance

    def options(self, profile: str | None) -> dict[str, object]:
        """The default options with a profile's on top. BadRequest if there is none of that name."""
        if profile is None:
            return dict(self.defaults)
        if profile not in self.profiles:
            known = ", ".join(self.profiles) or f"none; {self.path} has no [profiles.NAME]"
            hint = nearest(profile, self.profiles)
            raise BadRequest(f"no profile {shown(profile)}; there are: {known}{hint}")
        return {**self.defaults, **self.profiles[profile]}


def config_path() -> Path:
    """The config file's path."""
    if given := os.environ.get(CONFIG):
        return expand_user(given)
    return user_folder("CONFIG") / "config.toml"


def read_config() -> UserConfig:
    """Read the config file. BadFile names what is wrong in it."""
    path = config_path()
    if not os.path.lexists(path) and not os.environ.get(CONFIG):
        return UserConfig(path)
    content = read_bounded(path, SIZE_MAX, NO_CONFIG)
    try:
        tables: Values = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{shown(path)}: not TOML: {error}") from error
    check_keys(str(path), tables, TABLES)
    enhance = _table(path, "enhance", tables.get("enhance", {}))
    check_keys(f"{path}: enhance", enhance, ENHANCE)
    profiles = _table(path, "profiles", tables.get("profiles", {}))
    return UserConfig(
        path,
        _table(path, "defaults", tables.get("defaults", {})),
        {name: _table(path, f"profiles.{name}", rows) for name, rows in profiles.items()},
        {
            name: _source(path, name, value)
            for name, value in _table(path, "models", tables.get("models", {})).items()
        },
        _folders(path, _table(path, "paths", tables.get("paths", {}))),
        enhance,
    )


def set_default(key: str, value: str) -> Path:
    """Set an option's default in the config file, whose other lines stay; gives its path. BadFile.

    The file is made if it is missing.
    """
    path = config_path()
    text = ""
    if os.path.lexists(path):
        read_config()  # or it is broken
        text = read_bounded(path, SIZE_MAX, NO_CONFIG).decode("utf-8-sig")
    changed = _with_default(text, key, value)
    try:
        right = tomllib.loads(changed).get("defaults", {}).get(key) == value
    except ValueError:
        right = False
    if not right:
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        raise BadFile(f"{shown(path, 200)} cannot be changed; write {line} in [defaults]")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(changed.encode("utf-8"), path.resolve(), overwrite=True)
    except OSError as error:
        raise BadFile(f"cannot write {shown(path, 200)}: {reason(error)}") from error
    return path


def _with_default(text: str, key: str, value: str) -> str:
    """A config's text with a default set in its [defaults]."""
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    lines = text.splitlines()
    head = next((i for i, one in enumerate(lines) if re.match(r"\s*\[defaults\]", one)), None)
    if head is None:
        return "\n".join([*lines, *([""] if lines else []), "[defaults]", line, ""])
    end = next((i for i in range(head + 1, len(lines)) if re.match(r"\s*\[", lines[i])), len(lines))
    old = next((i for i in range(head, end) if re.match(rf"\s*{key}\s*=", lines[i])), None)
    if old is None:
        lines.insert(head + 1, line)
    else:
        lines[old] = line
    return "\n".join([*lines, ""])


def check_keys(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise BadFile for an unknown key; it names the nearest known one."""
    allowed = list(known)
    for key in keys:
        if key not in allowed:
            hint = nearest_or_all(key, allowed)
            raise BadFile(f"{shown(where, 200)}: unknown key {shown(key)}{hint}")


def _table(path: Path, name: str, value: object) -> Values:
    if not isinstance(value, dict):
        raise BadFile(f"{shown(path, 200)}: {shown(name)} must be a table: [{name}]")
    return value


def _source(path: Path, name: str, value: object) -> ModelSource:
    """A model's path, relative to the file's folder, or its Hub id, "ID@REVISION" included."""
    rows = {"path": value} if isinstance(value, str) else value
    rows = dict(rows) if isinstance(rows, dict) else rows
    where = f"{path}: models.{name}"
    texts = rows.pop("text_encoders", []) if isinstance(rows, dict) else []
    if not isinstance(rows, dict) or not all(isinstance(text, str) for text in rows.values()):
        raise BadFile(f'{shown(where, 200)} must be a path or a Hub id, such as "owner/model"')
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadFile(f'{shown(where, 200)}: text_encoders must be a list: ["t5xxl.safetensors"]')
    check_keys(where, rows, ("path", "id", "revision", "vae"))
    if ("path" in rows) == ("id" in rows):
        raise BadFile(f"{shown(where, 200)} needs either path or id")
    vae = _beside(path, rows["vae"]) if "vae" in rows else ""
    encoders = tuple(_beside(path, text) for text in texts)
    text = rows.get("id") or rows.get("path", "")
    local = path.parent / expand_user(text)
    if "path" in rows and (isinstance(value, dict) or _is_path(text) or local.exists()):
        return ModelSource(str(local), "", vae, encoders)
    target, _, revision = text.partition("@")
    return ModelSource(target, rows.get("revision", revision), vae, encoders)


def _beside(path: Path, text: str) -> str:
    """A file's path, relative to the config's folder; a name that is none stays."""
    local = path.parent / expand_user(text)
    looks_so = text.startswith((".", "/", "~", "\\")) or Path(text).suffix != ""
    return str(local) if looks_so or local.exists() else text


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or text.count("/") != 1 or Path(text).suffix != ""


def _folders(path: Path, rows: Values) -> tuple[Path, ...]:
    check_keys(f"{path}: paths", rows, ("models",))
    texts = rows.get("models", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadFile(f'{shown(path, 200)}: paths.models must be a list: ["~/models"]')
    return tuple(path.parent / expand_user(text) for text in texts)
