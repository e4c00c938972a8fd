"""The Hugging Face cache: models that are in it, found without its library and without a network.

Its layout is documented ("Manage huggingface_hub cache-system") and shared with other programs:
models--OWNER--NAME/refs/BRANCH holds a commit, snapshots/COMMIT/FILE leads to a blob. The library
finds the same, but takes most of a second to import.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from txt2img.errors import BadFile
from txt2img.system.files import expand_user, read_json, walk, write_atomic

SUFFIX, GGUF = ".safetensors", ".gguf"
SUFFIXES = (SUFFIX, GGUF)
DENOISERS = ("unet", "transformer")
NETWORKS = (*DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
COMMIT = re.compile("[0-9a-f]{40}")
_SNAPSHOT = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?=/|$)")
_REPOSITORY = re.compile(r"models--[^/]+--[^/]+")
_SHARD = re.compile(r"(.*)-\d+-of-(\d+)(.*)")


@dataclass(frozen=True)
class HubRef:
    """A repository of the Hub, a revision of it, and one file if not the whole model."""

    id: str
    revision: str = ""  # main
    file: str = ""


def cache_dir() -> Path:
    """The folder of the cache, by the environment's HF_HUB_CACHE or HF_HOME."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")
    return expand_user(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))


def find(ref: HubRef) -> Path | None:
    """The file, or the folder of a whole model; None if that is not in the cache."""
    snapshot = snapshot_dir(ref)
    if ref.file:
        return snapshot / ref.file if (snapshot / ref.file).is_file() else None
    return snapshot if _is_whole(snapshot) else None


def list_models(unreadable: list[OSError]) -> Iterator[tuple[str, Path]]:
    """Each model in the cache and each single weight file, by its name on the Hub.

    Errors of folders that cannot be read are added to `unreadable`.
    """
    _, names, _ = next(walk(cache_dir(), unreadable), (None, [], None))
    for repository in sorted(cache_dir() / one for one in names if _REPOSITORY.fullmatch(one)):
        id = repository.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = snapshot_dir(HubRef(id))
        if _is_whole(snapshot):
            yield id, snapshot
        elif not _has_network(snapshot):
            below = ([at / name for name in files] for at, _, files in walk(snapshot, unreadable))
            for path in sorted(chain.from_iterable(below)):
                if path.suffix in SUFFIXES and not _SHARD.fullmatch(path.name):
                    yield f"{id}:{path.relative_to(snapshot).as_posix()}", path


def snapshot_dir(ref: HubRef) -> Path:
    """The folder of a revision's files, which need not be there."""
    commit = ref.revision or "main"
    with suppress(OSError, ValueError):
        commit = _branch(ref).read_text(encoding="ascii").strip()
    # What a file says is not trusted: it could lead elsewhere.
    name = commit if COMMIT.fullmatch(commit) else "none"
    return _repository(ref) / "snapshots" / name


def set_branch(ref: HubRef, commit: str) -> None:
    """Note the commit of a revision, so that it is found by its name. OSError."""
    if commit != ref.revision:
        _branch(ref).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(commit.encode("ascii"), _branch(ref), overwrite=True)


def source(path: Path) -> HubRef | None:
    """The repository and commit of a path in any Hugging Face cache; None for other paths."""
    match = _SNAPSHOT.search(path.absolute().as_posix())
    return HubRef(f"{match[1]}/{match[2]}", match[3]) if match else None


def _repository(ref: HubRef) -> Path:
    return cache_dir() / f"models--{ref.id.replace('/', '--')}"


def _branch(ref: HubRef) -> Path:
    return _repository(ref) / "refs" / (ref.revision or "main")


def _is_whole(folder: Path) -> bool:
    """Whether a diffusers model has all its networks: downloads stop, and some fetch a part."""
    if not _has_network(folder):
        return False
    try:
        index = read_json(folder / "model_index.json")
    except BadFile:
        index = {}
    listed = [name for name in NETWORKS if index.get(name, [None, None]) != [None, None]]
    denoisers = [name for name in DENOISERS if (folder / name).is_dir()]
    return all(_has_weights(folder / name) for name in listed or denoisers)


def _has_network(folder: Path) -> bool:
    """Whether a folder has a network that denoises, whole or not."""
    return any((folder / name).is_dir() for name in DENOISERS)


def _has_weights(folder: Path) -> bool:
    """Whether a component has a whole file of weights, or all shards of one."""
    shards: Counter[tuple[str, str, str]] = Counter()
    for path in folder.glob(f"*{SUFFIX}"):
        if not path.is_file():  # a link whose blob is gone
            continue
        if (match := _SHARD.fullmatch(path.name)) is None:
            return True
        shards[match[1], match[2], match[3]] += 1
    return any(count == int(total) for (_, total, _), count in shards.items())
