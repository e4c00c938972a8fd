"""Models from the Hub: the files that are needed, fetched, checked, and only then put in place."""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from txt2img.errors import BadFile, BadOutput, BadRequest, ModelNotFound
from txt2img.system import locks
from txt2img.system.files import write_atomic
from txt2img.system.text import format_size, shown
from txt2img.weights.registry.find import RECORD, SUFFIX, Wanted, data, recorded

STAGING = ".pulling"  # in the data folder: hidden, so that nothing half there is found
COMPONENTS = (
    *("unet", "vae", "text_encoder", "text_encoder_2"),
    *("tokenizer", "tokenizer_2", "scheduler"),
)
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
POLL_SECONDS = 0.5
SPARE = 64 * 2**20  # bytes that are left free on the disk
BLOCK = 2**20


@dataclass(frozen=True)
class Remote:
    """A file of a repository, and what it must turn out to be."""

    name: str
    size: int  # bytes
    sha256: str  # of files in LFS; empty for small ones, which have a git id
    git: str


@dataclass(frozen=True)
class Offer:
    """What pulling would fetch: shown before anything is."""

    wanted: Wanted
    revision: str  # the commit, pinned
    licence: str
    files: tuple[Remote, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def offer(wanted: Wanted, variant: str | None = None, endpoint: str | None = None) -> Offer:
    """What the Hub has of that. ModelNotFound says why there is nothing to be had."""
    from huggingface_hub import HfApi

    with _told(wanted, endpoint):
        api = HfApi(endpoint=_endpoint(endpoint))
        found = api.model_info(wanted.id, revision=wanted.revision or None, files_metadata=True)
    remotes = {
        row.rfilename: Remote(
            row.rfilename, row.size or 0, row.lfs.sha256 if row.lfs else "", row.blob_id or ""
        )
        for row in found.siblings or ()
    }
    names = [wanted.file] if wanted.file else needed(list(remotes), wanted.id, variant)
    if wanted.file and wanted.file not in remotes:
        raise ModelNotFound(_no_file(wanted, list(remotes)))
    tags = [tag.partition(":")[2] for tag in found.tags or () if tag.startswith("license:")]
    licence = tags[0] if tags else "not stated"
    return Offer(wanted, found.sha or "", licence, tuple(remotes[name] for name in names))


def needed(names: Sequence[str], repository: str, variant: str | None = None) -> list[str]:
    """The files of a diffusers model that drawing takes: safetensors of one variant, configs.

    ModelNotFound if there are none, or weights as pickles only.
    """
    if "model_index.json" not in names and "unet/config.json" not in names:
        raise ModelNotFound(_no_file(Wanted(repository), names))
    chosen = [name for name in names if name == "model_index.json" or name.startswith("LICENSE")]
    for part in COMPONENTS:
        inside = [name for name in names if str(PurePosixPath(name).parent) == part]
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


def pull(offered: Offer, endpoint: str | None = None) -> Iterator[Remote | None]:
    """Fetch what is offered, giving each file when it is whole; then put all in its place.

    What an interruption leaves is gone on with, what is in its place already is left there. Gives
    None first if another process is at it, and waits. ModelNotFound, BadFile, BadOutput.
    """
    staging = data() / STAGING / _home(offered).name
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = staging.with_name(f"{staging.name}.lock")
        if (held := locks.claim(lock)) is None:
            yield None
            while (held := locks.claim(lock)) is None:
                time.sleep(POLL_SECONDS)
        try:
            staging.mkdir(exist_ok=True)  # who held the lock has moved it
            _check_room(offered, staging)
            for file in offered.files:
                target = staging / file.name
                if not _is_there(offered, file) and not target.exists():
                    _fetch(offered, file, target, endpoint)
                yield file
            _settle(offered, staging)
        finally:
            locks.release(lock, held)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadOutput(f"cannot write to {shown(str(data()), 200)}: {reason}") from error


def _home(offered: Offer) -> Path:
    """The folder that the files are to be in."""
    kind = "--files" if offered.wanted.file else ""
    return data() / (offered.wanted.id.replace("/", "--") + kind)


def _row(offered: Offer, file: Remote) -> dict[str, object]:
    """What is recorded of a file."""
    return {**asdict(file), "revision": offered.revision}


def _is_there(offered: Offer, file: Remote) -> bool:
    """Whether an earlier pull put this very file in its place, and it is still whole."""
    home = _home(offered)
    rows, path = recorded(home).get("files"), home / file.name
    known = isinstance(rows, dict) and rows.get(file.name) == _row(offered, file)
    return known and path.is_file() and path.stat().st_size == file.size


def _fetch(offered: Offer, file: Remote, target: Path, endpoint: str | None) -> None:
    """One file, checked before it has its name; what an earlier run got of it is gone on with.

    huggingface_hub's own hf_hub_download begins each file anew in a new process.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    wanted, where = offered.wanted, _endpoint(endpoint)
    part = target.with_name(f"{target.name}.{offered.revision[:12]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers()
    with _told(wanted, endpoint), part.open("ab") as opened:
        url = hf_hub_url(wanted.id, file.name, revision=offered.revision, endpoint=where)
        found = get_hf_file_metadata(url, endpoint=where)
        if urlsplit(found.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the token is the Hub's business only
        got = opened.tell()
        if got < file.size:
            http_get(
                found.location,
                opened,
                resume_size=got,
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
            )
    _check(part, file)
    part.replace(target)


def keep_quiet(quiet: bool) -> None:
    """Whether the library that fetches draws no bars of its own on stderr."""
    from logging import ERROR, getLogger

    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    getLogger("huggingface_hub").setLevel(ERROR)
    (disable_progress_bars if quiet else enable_progress_bars)()


def _settle(offered: Offer, staging: Path) -> None:
    """Give checked files their place: a new folder at once, an old one file by file."""
    wanted, home = offered.wanted, _home(offered)
    before = recorded(home) if wanted.file else {}
    kept = before.get("files")
    rows = {file.name: _row(offered, file) for file in offered.files}
    record = {
        "id": wanted.id,
        "asked": wanted.revision,
        "revision": offered.revision,
        "licence": offered.licence,
        "files": {**(kept if isinstance(kept, dict) else {}), **rows},
    }
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    write_atomic(dumps(record, indent=1).encode("ascii"), staging / RECORD, overwrite=True)
    if not home.exists():
        staging.replace(home)
        return
    fetched = [name for name in rows if (staging / name).exists()]
    for name in [*fetched, RECORD]:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(home / name)
    shutil.rmtree(staging, ignore_errors=True)


def _weights(inside: Sequence[str], stem: str, variant: str | None) -> list[str]:
    """The weights of one component: of the variant if there are such, else plain, else fp16."""
    for mark in dict.fromkeys([variant or "", "", "fp16"]):
        dot = f".{mark}" if mark else ""
        part = r"(-\d+-of-\d+)?"
        single = re.compile(
            rf"{re.escape(stem)}({re.escape(dot)}{part}|{part}{re.escape(dot)})\.safetensors"
        )
        found = [name for name in inside if single.fullmatch(name)]
        whole = [name for name in found if "-of-" not in name]
        if found:
            index = f"{stem}.safetensors.index{dot}.json"
            return whole or [*found, *(name for name in inside if name == index)]
    return []


def _check(path: Path, file: Remote) -> None:
    """The file must be what the Hub says; what is not is deleted. BadFile."""
    digest = hashlib.sha256()
    if not file.sha256:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode("ascii"))
    with path.open("rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != (file.sha256 or file.git):
        path.unlink()
        raise BadFile(f"{shown(file.name, 200)}: the checksum is not the Hub's; pull it again")


def _check_room(offered: Offer, staging: Path) -> None:
    there = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    there += sum(file.size for file in offered.files if _is_there(offered, file))
    free = shutil.disk_usage(staging).free
    if (needed_bytes := offered.size - there + SPARE) > free:
        raise BadOutput(
            f"{format_size(needed_bytes)} are needed in {shown(str(data()), 200)}, "
            f"{format_size(free)} are free; set XDG_DATA_HOME to another disk"
        )


def _no_file(wanted: Wanted, names: Sequence[str]) -> str:
    single = [name for name in names if name.endswith(SUFFIX)]
    if wanted.file:
        start = f"{wanted.id} has no file {shown(wanted.file, 200)}"
    else:
        start = f"{wanted.id} is no diffusers model of a known kind"
    if not single:
        return f"{start}, and no {SUFFIX} file; others are not pulled"
    return f"{start}; pull one of its files: {wanted.id}:{shown(single[0], 200)[1:-1]}"


def _endpoint(given: str | None) -> str | None:
    text = given or os.environ.get("HF_ENDPOINT")
    if text and not text.startswith(("http://", "https://")):
        raise BadRequest(f"the endpoint must begin with https://, got {shown(text)}")
    return text.rstrip("/") if text else None


@contextmanager
def _told(wanted: Wanted, endpoint: str | None) -> Iterator[None]:
    """What the Hub's library raises, as our errors."""
    from huggingface_hub import errors

    where = _endpoint(endpoint) or "https://huggingface.co"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelNotFound(
            f"{wanted.id} is gated: accept its licence at {where}/{wanted.id}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{wanted.id} has no revision {shown(wanted.revision)}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{where} has no model {wanted.id}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelNotFound(f"{wanted.id}: a file is missing on the Hub; pull it again") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        raise ModelNotFound(f"{where} answers {code} for {wanted.id}; try again later") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ModelNotFound(
            f"cannot fetch {wanted.id} from {where}: {type(error).__name__}; what is here already "
            "is kept, the same command goes on"
        ) from error
