"""A model's name → its place on this machine: in config.toml, in folders, in the Hub's cache."""

import glob
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from txt2img.errors import BadFile, BadRequest, ModelNotFound
from txt2img.system import user_config
from txt2img.system.files import (
    cannot_read,
    exists,
    expand_user,
    read_json,
    reason,
    user_folder,
    walk,
)
from txt2img.system.text import nearest, shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.registry import hashes, hub_cache
from txt2img.weights.registry.aliases import ALIASES
from txt2img.weights.registry.hub_cache import GGUF, SUFFIX, SUFFIXES, HubRef

MODELS = "TXT2IMG_MODELS"  # the environment variable for folders of models
SHIPPED = Path(__file__).parent.parent / "default" / "lora"  # LoRAs of the default model
RECORD = "txt2img-source.json"  # in a folder that an earlier version pulled: its origin
CANDIDATES_MAX = 5
FILES_MAX = 1000  # in a folder that are looked at for a name alike
UNREADABLE_MAX = 2  # folders that an error names
_NAME = r"[A-Za-z0-9_](?:[\w.-]{0,94}[\w])?"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([\w./-]+))?(?::(.+))?", re.ASCII)

_ADDRESS = re.compile(
    rf"https?://(?:huggingface\.co|hf\.co)/({_NAME}/{_NAME})"
    r"(?:/(?:tree|blob|resolve)/([\w.-]+)(?:/([^?]+))?)?/?(?:\?.*)?",
    re.ASCII,
)
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def models_dir() -> Path:
    """The folder for models of one's own, where earlier versions also put pulled ones."""
    return user_folder("DATA") / "models"


def folders() -> tuple[Path, ...]:
    """The folders that are searched: the environment's, the config's, our own, the package's."""
    variable = [text for text in os.environ.get(MODELS, "").split(os.pathsep) if text]
    named = [expand_user(text) for text in variable]
    return tuple(dict.fromkeys([*named, *user_config.read_config().folders, models_dir(), SHIPPED]))


def list_models(unreadable: list[OSError] | None = None) -> Iterator[tuple[str, Path]]:
    """Each model in the folders, by its path there, and in the Hub's cache, by its id.

    Errors of folders that cannot be read are added to `unreadable`.
    """
    errors = [] if unreadable is None else unreadable
    for folder in folders():
        for path in _below(folder, errors):
            name = path.relative_to(folder).as_posix()
            yield name.removesuffix(SUFFIX) if path.suffix == SUFFIX else name, path
    yield from hub_cache.list_models(errors)


def list_configured() -> Iterator[tuple[str, Path]]:
    """Each model that config.toml names and that is on this machine."""
    for name in user_config.read_config().models:
        with suppress(BadRequest):  # may be any of several
            if path := _search(name):
                yield name, path


def find(name: str) -> Path:
    """The place of a model, by name or path. ModelNotFound; BadRequest if the name is ambiguous."""
    if (path := _search(name)) is not None:
        return path
    raise ModelNotFound(_advice(name, user_config.read_config().models.get(name), hub_ref(name)))


def named_parts(name: str) -> tuple[str, tuple[str, ...]]:
    """The VAE and the text encoders that config.toml names with a model: paths; empty for others.

    ModelNotFound, BadRequest.
    """
    source = user_config.read_config().models.get(name)
    if source is None:
        return "", ()
    where = f"config.toml, models.{name}"
    vae = str(find_file(where, source.vae)) if source.vae else ""
    return vae, tuple(str(find_file(where, text)) for text in source.text_encoders)


def find_by_hash(digits: str) -> tuple[str, Path] | None:
    """The name and file of the model with one of A1111's short hashes; None if none has it.

    No whole file is read: a SHA-256 counts once it is cached, as it is after the first drawing.
    """
    for name, path in list_models() if len(digits) >= hashes.OLD_DIGITS else ():
        try:
            if path.is_file() and hashes.matches(path, digits.lower()):
                return name, path
        except BadFile:
            continue
    return None


def find_file(option: str, name: str) -> Path:
    """The place of a LoRA, a VAE or another file for an option. Raises as `find`."""
    odd = ":" in name and not name.endswith(SUFFIX) and not os.path.lexists(name)
    if not odd and (path := _search(name)) is not None:
        return path
    hint = nearest(name, names())
    raise ModelNotFound(
        f"{option}: no file {shown(name)}, and no name that txt2img models list shows{hint}"
        f"{_unreadable()}"
    )


def find_upscaler(option: str, name: str) -> Path:
    """The file of an upscaler. Raises as `find_file`; UnknownLayout if it is there as a pickle."""
    try:
        return find_file(option, name)
    except ModelNotFound:
        for folder in folders():
            for suffix in safetensors_file.PICKLES:
                if pickled := next(folder.rglob(f"{glob.escape(name)}{suffix}"), None):
                    safetensors_file.header(pickled)  # which refuses it, and says why
        raise


def _search(name: str) -> Path | None:
    """The place of a path or name; None if there is none. BadRequest if ambiguous; BadFile."""
    path = expand_user(name)
    if name and exists(path):
        return path
    configured = user_config.read_config().models.get(name)
    if configured is not None and Path(configured.target).exists():
        return Path(configured.target)
    if (ref := hub_ref(name)) is not None and (pulled := find_pulled(ref)) is not None:
        return pulled
    matches = _matches(name)
    if len(matches) > 1:
        listed = ", ".join(shown(path, 200) for path in matches[:CANDIDATES_MAX])
        raise BadRequest(
            f"{shown(name)} may be any of {len(matches)}: {listed}; say more of its path"
        )
    return matches[0] if matches else None


def names() -> list[str]:
    """All names that find a model on this machine, besides paths."""
    pulled = [name for name in ALIASES if (ref := hub_ref(name)) and find_pulled(ref)]
    configured = user_config.read_config().models
    return sorted({"default", *configured, *pulled, *(name for name, _ in list_models())})


def hub_ref(name: str) -> HubRef | None:
    """The Hub reference of an alias or ID[@REVISION][:FILE]; None for other names."""
    if name in (configured := user_config.read_config().models):
        source = configured[name]
        name = "@".join(text for text in (source.target, source.revision) if text)
    elif name in ALIASES:
        return HubRef(ALIASES[name].id, file=ALIASES[name].file)
    match = _ID.fullmatch(_from_address(name))
    if match is None or (match[2] and leads_out(match[2])):
        return None
    file = match[3] or ""
    if file and (not file.endswith(SUFFIXES) or leads_out(file)):
        raise BadRequest(
            f"{shown(file)} is not the name of a {' or '.join(SUFFIXES)} file; others are not "
            "pulled"
        )
    return HubRef(match[1], match[2] or "", file)


def _from_address(name: str) -> str:
    """The ID[@REVISION][:FILE] of a page on the Hub; another name as it is."""
    match = _ADDRESS.fullmatch(name)
    if match is None:
        return name
    revision = "" if match[2] in (None, "main") else f"@{match[2]}"
    return f"{match[1]}{revision}" + (f":{match[3]}" if match[3] else "")


def find_pulled(ref: HubRef) -> Path | None:
    """The place of a model of the Hub on this machine; None if it is not here."""
    return hub_cache.find(ref) or pulled_before(ref)


def pulled_before(ref: HubRef) -> Path | None:
    """The place where an earlier version put what it pulled; None if it did not."""
    flat = ref.id.replace("/", "--")
    path = models_dir() / f"{flat}--files" / ref.file if ref.file else models_dir() / flat
    record = _record(path)
    known = not ref.revision or ref.revision in (record.get("asked"), record.get("revision"))
    return path if known and path.exists() else None


def source(path: Path) -> dict[str, str]:
    """The id, revision and licence of a pulled model; empty for others."""
    if (ref := hub_cache.source(path)) is None:
        record = _record(path)
        return {key: str(record[key]) for key in ("id", "revision", "licence") if key in record}
    licences = {alias.id: {"licence": alias.licence} for alias in ALIASES.values()}
    return {"id": ref.id, "revision": ref.revision, **licences.get(ref.id, {})}


def model_name(folder: Path) -> str:
    """The name of the model in a folder, for records: the repository's, or the folder's."""
    ref = hub_cache.source(folder)
    return ref.id.rpartition("/")[2] if ref else folder.resolve().name


def delete(path: Path) -> None:
    """Delete a model's file or folder; of a link only the link. BadFile."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise BadFile(f"cannot delete {shown(path)}: {reason(error)}") from error


def leads_out(file: str) -> bool:
    """Whether a relative path is hidden or leads out of its folder."""
    return "\\" in file or any(part == "" or part[0] == "." for part in file.split("/"))


def _record(path: Path) -> dict[str, object]:
    """The record that an earlier version wrote beside a pulled model; empty if there is none."""
    home = path if path.is_dir() else next((p for p in path.parents if (p / RECORD).exists()), path)
    try:
        return read_json(home / RECORD)
    except BadFile:
        return {}


def _below(folder: Path, unreadable: list[OSError]) -> Iterator[Path]:
    """The models and weight files in a folder and its subfolders, but for hidden ones."""
    for here, inside, files in walk(folder, unreadable):
        if here != folder and ("unet" in inside or "model_index.json" in files):
            inside.clear()
            yield here
            continue
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield here / name


def _matches(name: str) -> list[Path]:
    """The models of that name: by their whole relative path, else by its last part."""
    bare = name.removesuffix(SUFFIX)
    models = [(known.removesuffix(SUFFIX), path) for known, path in list_models()]
    whole = [path for known, path in models if known == bare]
    last = [path for known, path in models if re.split("[/:]", known)[-1] == bare]
    named = [path for known, path in models if re.split("[/:]", known)[-1] == f"{bare}{GGUF}"]
    return list({path.resolve(): path for path in whole or last or named}.values())


def _advice(name: str, configured: user_config.ModelSource | None, ref: HubRef | None) -> str:
    if ref is not None:
        return (
            f"no model {shown(name)} on this machine, and nothing is fetched unasked: "
            f"txt2img models pull {_from_address(name)}"
        )
    if configured is not None:
        target = shown(configured.target, 200)
        return f"no model {shown(name)}: the config says {target}, which is not there"
    if "://" in name:
        return f"{shown(name)} is an address: download its .safetensors file, and give its path"
    if name.lower().endswith(PICKLES):
        return (
            f"no file {shown(name)}, and pickles ({', '.join(PICKLES[:2])}) are not read: they may "
            "run code; use the model's .safetensors"
        )
    if (path := Path(name)).suffix in SUFFIXES or os.sep in name:
        weights = (one.name for one in path.parent.glob("*") if one.suffix in SUFFIXES)
        beside = sorted(weights)[:FILES_MAX]
        return f"no file or folder {shown(name)}{nearest(path.name, beside)}"
    hint = nearest(name, [*names(), *ALIASES])
    return (
        f"no model {shown(name)}: give 'default', a diffusers folder, a .safetensors file, or a "
        f"name that txt2img models list shows{hint or '; txt2img models pull ID fetches one'}"
        f"{_unreadable()}"
    )


def _unreadable() -> str:
    """A hint with the folders of models that cannot be read; empty if all can."""
    errors: list[OSError] = []
    deque(list_models(errors), maxlen=0)
    return "".join(f"; {line}" for line in cannot_read(errors[:UNREADABLE_MAX]))
