"""What a batch consists of, what of it is done, and who draws what: several processes, one folder.

A picture's own record says what it is, so the folder is all the memory that a batch needs. What a
process is drawing it claims by a locked file, which nobody holds any more once it is gone.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Self

from txt2img.errors import BadFile, BadOutput
from txt2img.images import formats, image_file
from txt2img.images.formats import Format
from txt2img.images.output import Output, with_suffix
from txt2img.request import Request
from txt2img.request.compat import canonical
from txt2img.system import locks
from txt2img.system.text import shown

POLL_SECONDS = 0.2
LATENT, PARTIAL = ".txt2img-{}.latent", ".txt2img-{}.partial"  # beside the pictures
LATE_MAX = 256  # pictures of others that are remembered before it is looked which are done


@dataclass(frozen=True)
class Item:
    """One picture of a batch."""

    index: int  # in the whole batch, from 1: the same whatever is done, and in every shard
    request: Request  # filled, for one picture
    name: str  # of its file
    number: int  # among those of that name
    id: str
    copy: int = 0  # how many before it are the same
    first_seed: int | None = None  # the seed asked for, if the request's is a retry's


def item_id(request: Request, model_hash: str) -> str:
    """What tells a picture from all others: 32 hex digits of its whole request and its model."""
    values = canonical(request).to_json() | {"model": model_hash}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def picture_id(path: Path) -> str:
    """The id of a picture by its record; empty if it has none of ours."""
    try:
        found = image_file.read(path)
    except BadFile:
        return ""
    if found.request is None or not found.pixels_sha256:
        return ""
    first = found.request.seed if found.first_seed is None else found.first_seed
    return item_id(replace(found.request, seed=first), found.origin.hash)


def items(requests: Iterable[Request], output: Output, model_hash: str | None) -> Iterator[Item]:
    """Every picture of a batch with its place in it: no two get one name.

    Where the model's hash is not known (None), the items have no ids.
    """
    names: dict[str, int] = {}
    copies: Counter[str] = Counter()
    for index, request in enumerate(requests, start=1):
        name = output.name(request, index)
        number = names.get(name, 0) + 1
        while number > 1 and with_suffix(name, number) in names:
            number += 1
        names[name] = number
        names.setdefault(with_suffix(name, number), 1)
        key = "" if model_hash is None else item_id(request, model_hash)
        yield Item(index, request, name, number, key, copies[key])
        copies[key] += 1


def latent_path(folder: Path, item: Item, whole: bool = True) -> Path:
    """Where an item's latent is kept, after the last step or before."""
    return folder / (LATENT if whole else PARTIAL).format(f"{item.id}-{item.copy}")


def forget(folder: Path, item: Item) -> None:
    """Remove an item's latents, if there are any: its picture is there, or is not wanted."""
    for whole in (True, False):
        with suppress(OSError):
            latent_path(folder, item, whole).unlink()


class ResumeIndex:
    """A folder's pictures by their ids, and this process's claims, which end with the context."""

    def __init__(self, output: Output) -> None:
        self.folder = output.folder
        self.found: dict[str, list[Path]] = {}
        self.held: dict[str, tuple[int, int]] = {}  # by id: descriptor, how many items
        names = [output.pattern] if output.exact else _names(output.folder, output.format)
        for name in sorted(names, key=lambda name: (len(name), name)):
            self._note(picture_id(self.folder / name), self.folder / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self.held):
            self._unlock(key)

    def done(self, item: Item) -> Path | None:
        """Where an item's picture is, if it was found."""
        paths = self.found.get(item.id, [])
        return paths[item.copy] if item.copy < len(paths) else None

    def claimable(self, items: Iterable[Item], late: list[Item]) -> Iterator[Item]:
        """The items that are to be drawn and are now ours; those that others draw go to `late`."""
        for item in items:
            ours = self.claim(item)
            if ours:
                yield item
            elif ours is None:
                late.append(item)
                if len(late) % LATE_MAX == 0:
                    late[:] = [one for one in late if not self._find_image(one)]

    def wait(self, item: Item) -> bool:
        """Whether an item is ours to draw, once nobody else is drawing it."""
        while (ours := self.claim(item)) is None:
            time.sleep(POLL_SECONDS)
        return ours

    def claim(self, item: Item) -> bool | None:
        """True: it is to be drawn, by us. False: it is there. None: another process draws it."""
        if self.done(item):
            forget(self.folder, item)  # of a run that was killed before it did
            return False
        if item.id not in self.held:
            try:
                descriptor = locks.claim(self._lock(item.id))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                where = shown(str(self.folder))
                raise BadOutput(f"cannot write in {where}: {reason}") from error
            if descriptor is None:
                return None
            self.held[item.id] = (descriptor, 0)
        descriptor, count = self.held[item.id]
        if path := self._find_image(item):
            self._note(item.id, path)
            forget(self.folder, item)
            if not count:
                self._unlock(item.id)
            return False
        self.held[item.id] = (descriptor, count + 1)
        return True

    def release(self, items: Iterable[Item]) -> None:
        """Give up claims: the pictures are written, or will not be."""
        for item in items:
            descriptor, count = self.held[item.id]
            self.held[item.id] = (descriptor, count - 1)
            if count == 1:
                self._unlock(item.id)

    def _find_image(self, item: Item) -> Path | None:
        """An item's picture under a name that it may have, if another process wrote it."""
        number = 1 if item.copy else item.number
        before = 0  # copies that lie under earlier numbers
        while True:
            path = self.folder / with_suffix(item.name, number)
            if not os.path.lexists(path):
                if number >= item.number:
                    return None
            elif picture_id(path) == item.id:
                if before == item.copy:
                    return path
                before += 1
            number += 1

    def _note(self, key: str, path: Path) -> None:
        if key and path not in self.found.get(key, []):
            self.found.setdefault(key, []).append(path)

    def _lock(self, key: str) -> Path:
        return self.folder / locks.LOCK.format(key)

    def _unlock(self, key: str) -> None:
        locks.release(self._lock(key), self.held.pop(key)[0])


def _names(folder: Path, form: Format) -> list[str]:
    """The names of the pictures of that format in a folder."""
    with os.scandir(folder) as entries:
        found = [(entry.name, formats.by_suffix(entry.name)) for entry in entries]
    return [name for name, its in found if its is not None and its.name == form.name]
