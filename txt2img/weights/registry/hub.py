"""Downloads of models from the Hub into the Hugging Face cache, which other programs share.

huggingface_hub fetches the files. What a server says is checked here where that library does not:
nothing is written outside the cache, no more than was announced, and hashes must be right.
"""

import glob
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path, PurePosixPath
from threading import Event
from typing import TYPE_CHECKING, Protocol

from txt2img.errors import BadFile, BadOutput, BadRequest, ModelNotFound, Txt2imgError
from txt2img.system.files import parse_json, reason
from txt2img.system.text import format_size, shown
from txt2img.weights.registry import hub_cache
from txt2img.weights.registry.find import leads_out, pulled_before
from txt2img.weights.registry.hashes import sha256
from txt2img.weights.registry.hub_cache import DENOISERS, NETWORKS, SUFFIX, HubRef

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.utils.tqdm import tqdm

COMPONENTS = (*NETWORKS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
WEIGHTS = dict.fromkeys((*DENOISERS, "vae"), "diffusion_pytorch_model")
SIZE_MAX = 2**50  # bytes of a file that is believed
SPARE = 64 * 2**20  # bytes that are left free on the disk


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, its size and its hash."""

    name: str
    size: int  # bytes
    sha256: str  # of files in LFS; empty for small ones


@dataclass(frozen=True)
class Download:
    """The files that pulling a model fetches, known before it begins."""

    ref: HubRef
    revision: str  # the commit, pinned
    licence: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan_download(ref: HubRef, variant: str | None = None, endpoint: str | None = None) -> Download:
    """Ask the Hub for the files of a model. ModelNotFound says why there is nothing to fetch."""
    from huggingface_hub import HfApi

    with _hub_errors(ref, endpoint):
        api = HfApi(endpoint=_endpoint(endpoint))
        info = api.model_info(ref.id, revision=ref.revision or None, files_metadata=True)
        remote = _remote_files(info)
    names = [ref.file] if ref.file else needed(list(remote), ref.id, variant)
    if ref.file and ref.file not in remote:
        raise ModelNotFound(_no_file(ref, list(remote)))
    listed = info.tags if isinstance(info.tags, list) else []
    tags = [str(tag).partition(":")[2] for tag in listed if str(tag).startswith("license:")]
    licence = tags[0] if tags else "not stated"
    if not hub_cache.COMMIT.fullmatch(str(info.sha)):
        raise ModelNotFound(f"the Hub names no commit of {ref.id}; try again later")
    return Download(ref, info.sha or "", licence, tuple(remote[name] for name in names))


def _remote_files(info: "ModelInfo") -> dict[str, RemoteFile]:
    """The files that the Hub lists, by name. ValueError if the list is malformed."""
    files: dict[str, RemoteFile] = {}
    for row in info.siblings or ():
        name, size, sha = row.rfilename, row.size or 0, row.lfs.sha256 if row.lfs else ""
        if not isinstance(name, str) or type(size) is not int or not 0 <= size < SIZE_MAX:
            raise ValueError(f"{shown(name)} of {shown(size)} bytes")
        if not isinstance(sha, str):
            raise ValueError(f"{shown(name)} with the hash {shown(sha)}")
        files[name] = RemoteFile(name, size, sha)
    return files


def needed(names: Sequence[str], repository: str, variant: str | None = None) -> list[str]:
    """The files of a diffusers model that drawing takes: safetensors of one variant, configs.

    ModelNotFound if there are none, or weights as pickles only.
    """
    if "model_index.json" not in names and not {f"{n}/config.json" for n in DENOISERS} & {*names}:
        raise ModelNotFound(_no_file(HubRef(repository), names))
    top = [name for name in names if "/" not in name and not leads_out(name)]
    chosen = [name for name in top if name == "model_index.json" or name.startswith("LICENSE")]
    for part in COMPONENTS:
        inside = [n for n in names if str(PurePosixPath(n).parent) == part and not leads_out(n)]
        chosen += [n for n in inside if n.endswith((".json", ".txt")) and ".index." not in n]
        if part.startswith(("tokenizer", "scheduler")) or not inside:
            continue
        weights = _weights(inside, f"{part}/{WEIGHTS.get(part, 'model')}", variant)
        if not weights:
            raise ModelNotFound(
                f"{repository}: {part} has no {SUFFIX} weights; pickles are not pulled"
            )
        chosen += weights
    return chosen


def download(plan: Download, endpoint: str | None = None) -> Path:
    """Fetch the files that are not in the cache, and give the path of the file or folder there.

    ModelNotFound, BadFile, BadOutput.
    """
    ref, folder = plan.ref, hub_cache.snapshot_dir(HubRef(plan.ref.id, plan.revision))
    old = pulled_before(HubRef(ref.id, plan.revision, ref.file))
    if old and all((old / file.name if old.is_dir() else old).is_file() for file in plan.files):
        return old
    try:
        missing = [file for file in plan.files if not _is_cached(folder / file.name, file.size)]
        if missing:
            _check_free_space(sum(file.size for file in missing))
            with _hub_errors(ref, endpoint):
                _fetch(plan, missing, endpoint)
        for file in missing:
            _check_hash(folder / file.name, file)
        hub_cache.set_branch(ref, plan.revision)
    except OSError as error:
        place = shown(hub_cache.cache_dir(), 200)
        raise BadOutput(f"cannot write to {place}: {reason(error)}") from error
    return folder / ref.file if ref.file else folder


def keep_quiet(quiet: bool) -> None:
    """Switch huggingface_hub's progress bars off or on, and its warnings off."""
    from huggingface_hub.utils.logging import set_verbosity
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    set_verbosity(ERROR)
    (disable_progress_bars if quiet else enable_progress_bars)()


def _fetch(plan: Download, missing: Sequence[RemoteFile], endpoint: str | None) -> None:
    """Download files in another thread, which ends soon when this one is interrupted."""
    from huggingface_hub import snapshot_download

    stop = Event()
    bar = _bounded_bar(sum(file.size for file in missing) + SPARE, stop)
    with _checked_responses(), ThreadPoolExecutor(1) as pool:
        job = pool.submit(
            snapshot_download,
            plan.ref.id,
            revision=plan.revision,
            cache_dir=hub_cache.cache_dir(),
            allow_patterns=[glob.escape(file.name) for file in missing],
            endpoint=_endpoint(endpoint),
            tqdm_class=bar,
            max_workers=1,  # when stopped, each file waits for its next 10 MB
        )
        try:
            job.result()
        finally:
            stop.set()


def _bounded_bar(limit: int, stop: Event) -> "type[tqdm]":
    """A progress bar that ends the download it counts at `stop`, or beyond so many bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        received = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += n or 0
            if stop.is_set() or self.received > limit:
                raise BadFile("the Hub sends more bytes than it announced")
            drawn: bool | None = super().update(n)
            return drawn

    return Bar


@contextmanager
def _checked_responses() -> Iterator[None]:
    """Check every answer for paths that lead out of the cache.

    huggingface_hub checks the names of files, but it also names blobs by ETags and listed hashes.
    """
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [*hooks["response"], _check_response]}
    try:
        yield
    finally:
        session.event_hooks = hooks


class _Response(Protocol):
    """The part of an HTTP response that is checked."""

    headers: Mapping[str, str]
    url: object

    def read(self) -> bytes: ...


def _check_response(response: _Response) -> None:
    """Raise BadFile if an ETag or a listed hash could lead out of a folder."""
    names = [response.headers.get(key, "") for key in ("X-Linked-Etag", "ETag")]
    if "/tree/" in str(response.url):
        listed = parse_json(response.read().decode("utf-8", errors="replace"))
        for row in listed if isinstance(listed, list) else ():
            lfs = row.get("lfs") if isinstance(row, dict) else None
            names.append(str(lfs.get("oid")) if isinstance(lfs, dict) else "")
    for name in names:
        name = name.removeprefix("W/").strip('"')
        if re.search(r"\.\.|[/\\]", name):
            raise BadFile(f"the Hub answers with {shown(name)}, which is no hash; nothing is kept")


def _is_cached(path: Path, size: int) -> bool:
    """Whether a file is in the cache; one of another size is removed from it."""
    if path.is_file() and path.stat().st_size == size:
        return True
    _forget(path)
    return False


def _forget(path: Path) -> None:
    """Remove a file from the cache: its link, and the blob that this leads to."""
    blob = path.resolve()
    if blob.is_relative_to(hub_cache.cache_dir().resolve()):
        blob.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _check_hash(path: Path, file: RemoteFile) -> None:
    """A large file must have the hash that the Hub says; it is removed if not. BadFile."""
    if file.sha256 and sha256(path) != file.sha256:  # which is kept for the model's own hash
        _forget(path)
        raise BadFile(f"{shown(file.name, 200)}: the checksum is not the Hub's; pull it again")


def _check_free_space(size: int) -> None:
    cache = hub_cache.cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    if size + SPARE > (free := shutil.disk_usage(cache).free):
        raise BadOutput(
            f"{format_size(size + SPARE)} are needed in {shown(cache, 200)}, "
            f"{format_size(free)} are free; set HF_HOME to another disk"
        )


def _weights(inside: Sequence[str], stem: str, variant: str | None) -> list[str]:
    """The weights of one component: of the variant if there are any, else plain, else fp16."""
    for kind in dict.fromkeys([variant or "", "", "fp16"]):
        dot = f".{kind}" if kind else ""
        shard = r"(-\d+-of-\d+)?"
        pattern = re.compile(
            rf"{re.escape(stem)}({re.escape(dot)}{shard}|{shard}{re.escape(dot)})\.safetensors"
        )
        files = [name for name in inside if pattern.fullmatch(name)]
        if files:
            whole = [name for name in files if "-of-" not in name]
            index = f"{stem}.safetensors.index{dot}.json"
            return whole or [*files, *(name for name in inside if name == index)]
    return []


def _no_file(ref: HubRef, names: Sequence[str]) -> str:
    single = [name for name in names if name.endswith(SUFFIX)]
    if ref.file:
        start = f"{ref.id} has no file {shown(ref.file, 200)}"
    else:
        start = f"{ref.id} is no diffusers model of a known kind"
    if not single:
        return f"{start}, and no {SUFFIX} file; others are not pulled"
    return f"{start}; pull one of its files: {ref.id}:{shown(single[0], 200)[1:-1]}"


def _endpoint(given: str | None) -> str | None:
    text = given or os.environ.get("HF_ENDPOINT")
    if text and not text.startswith(("http://", "https://")):
        raise BadRequest(f"the endpoint must begin with https://, got {shown(text)}")
    return text.rstrip("/") if text else None


@contextmanager
def _hub_errors(ref: HubRef, endpoint: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors."""
    from huggingface_hub import errors

    where = _endpoint(endpoint) or "https://huggingface.co"
    try:
        yield
    except Txt2imgError:
        raise
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{ref.id} is gated: accept its licence at {where}/{ref.id}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{ref.id} has no revision {shown(ref.revision)}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{where} has no model {ref.id}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelNotFound(f"{ref.id}: a file is missing on the Hub; pull it again") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise ModelNotFound(f"{where} answers {code} for {ref.id}; try again later") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ModelNotFound(
            f"cannot fetch {ref.id} from {where}: {type(error).__name__}; what is whole is kept, "
            "the same command goes on"
        ) from error
