"""A model's name → where it is on this machine: in config.toml, in folders, among those pulled."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from txt2img.errors import BadFile, BadRequest, ModelNotFound
from txt2img.system import user_config
from txt2img.system.files import read_json
from txt2img.system.text import nearest, shown
from txt2img.weights.registry.aliases import ALIASES

MODELS = "TXT2IMG_MODELS"  # the environment's name for folders of models
SUFFIX = ".safetensors"
SHIPPED = Path(__file__).parent.parent / "default" / "lora"  # LoRAs of the default model
RECORD = "txt2img-source.json"  # in a pulled folder: what it is a copy of
CANDIDATES_MAX = 5
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[\w])?"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([\w./-]+))?(?::(.+))?", re.ASCII)


@dataclass(frozen=True)
class Wanted:
    """A repository of the Hub, a revision of it, and one file if not the whole model."""

    id: str
    revision: str = ""
    file: str = ""

    @property
    def place(self) -> Path:
        """Where it is once it is pulled."""
        flat = self.id.replace("/", "--")
        return data() / f"{flat}--files" / self.file if self.file else data() / flat


def data() -> Path:
    """The folder that pulled models are in."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "txt2img" / "models"


def folders() -> tuple[Path, ...]:
    """Where weights are looked for: the environment's folders, the config's, our own, shipped."""
    given = [text for text in os.environ.get(MODELS, "").split(os.pathsep) if text]
    named = [Path(text).expanduser() for text in given]
    return tuple(dict.fromkeys([*named, *user_config.read().folders, data(), SHIPPED]))


def every() -> Iterator[tuple[str, Path]]:
    """Each model in the folders: its name, relative to the folder, and its place."""
    for folder in folders():
        for path in _below(folder):
            name = path.relative_to(folder).as_posix()
            yield name.removesuffix(SUFFIX) if path.suffix == SUFFIX else name, path


def find(name: str) -> Path:
    """Where the model of that name or path is. ModelNotFound; BadRequest if two are meant."""
    if (found := _sought(name)) is not None:
        return found
    raise ModelNotFound(_advice(name, user_config.read().models.get(name), on_hub(name)))


def find_file(option: str, name: str) -> Path:
    """The same of what another option than --model takes: a LoRA, a VAE, … Raises as `find`."""
    odd = ":" in name and not name.endswith(SUFFIX) and not os.path.lexists(name)
    if not odd and (found := _sought(name)) is not None:
        return found
    hint = nearest(name, names())
    raise ModelNotFound(
        f"{option}: no file {shown(name)}, and no name that txt2img models list shows{hint}"
    )


def _sought(name: str) -> Path | None:
    """Where a path or name leads; None if nowhere. BadRequest if two are meant, ModelNotFound."""
    given = Path(name).expanduser()
    if name and os.path.lexists(given):
        return given
    known = user_config.read().models.get(name)
    if known is not None and Path(known.target).exists():
        return Path(known.target)
    wanted = on_hub(name)
    if wanted is not None and wanted.place.exists():
        _check_revision(name, wanted)
        return wanted.place
    found = _matches(name)
    if len(found) > 1:
        listed = ", ".join(shown(str(path), 200) for path in found[:CANDIDATES_MAX])
        raise BadRequest(
            f"{shown(name)} may be any of {len(found)}: {listed}; say more of its path"
        )
    return found[0] if found else None


def names() -> list[str]:
    """All names that find a model on this machine, besides paths."""
    pulled = [alias for alias in ALIASES if (there := on_hub(alias)) and there.place.exists()]
    own = user_config.read().models
    return sorted({"default", *own, *pulled, *(name for name, _ in every())})


def on_hub(name: str) -> Wanted | None:
    """What of the Hub a name, an alias or ID[@REVISION][:FILE] means; None if nothing."""
    if name in (own := user_config.read().models):
        name = "@".join(text for text in (own[name].target, own[name].revision) if text)
    elif name in ALIASES:
        return Wanted(ALIASES[name].id, file=ALIASES[name].file)
    match = _ID.fullmatch(name)
    if match is None:
        return None
    file = match[3] or ""
    if file and (not file.endswith(SUFFIX) or _leads_out(file)):
        raise BadRequest(f"{shown(file)} is not the name of a {SUFFIX} file; others are not pulled")
    return Wanted(match[1], match[2] or "", file)


def recorded(path: Path) -> dict[str, object]:
    """What is written of where a pulled model comes from; empty if it is not one, or broken."""
    home = path if path.is_dir() else next((p for p in path.parents if (p / RECORD).exists()), path)
    try:
        return read_json(home / RECORD)
    except BadFile:
        return {}


def _leads_out(file: str) -> bool:
    return "\\" in file or any(
        part in ("", ".", "..") or part[0] == "." for part in file.split("/")
    )


def _below(folder: Path) -> Iterator[Path]:
    """Model folders and weight files in a folder and those inside it; hidden ones are not ours."""
    for at, inside, files in os.walk(folder):
        here = Path(at)
        if here != folder and ("unet" in inside or "model_index.json" in files):
            inside.clear()
            yield here
            continue
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(SUFFIX) and not name.startswith("."):
                yield here / name


def _matches(name: str) -> list[Path]:
    """The models of that name: by their whole relative path, else by its last part."""
    bare = name.removesuffix(SUFFIX)
    models = list(every())
    whole = [path for known, path in models if known == bare]
    last = [path for known, path in models if known.rpartition("/")[2] == bare]
    return list({path.resolve(): path for path in whole or last}.values())


def _check_revision(name: str, wanted: Wanted) -> None:
    """A revision that is asked for must be the one that was pulled. ModelNotFound."""
    there = recorded(wanted.place)
    if wanted.revision and wanted.revision not in (there.get("asked"), there.get("revision")):
        raise ModelNotFound(
            f"{shown(name)} is here in another revision, {shown(there.get('revision'))}; "
            f"txt2img models pull {name}"
        )


def _advice(name: str, known: user_config.Source | None, wanted: Wanted | None) -> str:
    if wanted is not None:
        return (
            f"no model {shown(name)} on this machine, and nothing is fetched unasked: "
            f"txt2img models pull {name}"
        )
    if known is not None:
        target = shown(known.target, 200)
        return f"no model {shown(name)}: the config says {target}, which is not there"
    hint = nearest(name, [*names(), *ALIASES])
    return (
        f"no model {shown(name)}: give 'default', a diffusers folder, a .safetensors file, or a "
        f"name that txt2img models list shows{hint or '; txt2img models pull ID fetches one'}"
    )
