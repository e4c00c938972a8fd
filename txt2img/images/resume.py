"""Resuming a batch, by any number of processes: its items, and which of them are there or claimed.

A picture's record identifies it, so a batch needs no state but its folder. A process claims what it
draws with a locked file; the lock ends with the process.
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
from txt2img.images.record import Origin
from txt2img.request import Request
from txt2img.request.compat import canonical
from txt2img.system import files
from txt2img.system.text import shown

POLL_SECONDS = 0.2
LATENT, PARTIAL = ".txt2img-{}.latent", ".txt2img-{}.partial"  # next to the pictures
WAITING_MAX = 256  # other processes' items that are kept before the finished ones are dropped


@dataclass(frozen=True)
class Item:
    """One picture of a batch."""

    index: int  # in the whole batch, from 1, in every shard and resumed run
    request: Request  # filled, for one picture
    name: str  # of its file
    number: int  # among items of that name, from 1
    id: str
    copy: int = 0  # how many earlier items are the same
    first_seed: int | None = None  # the seed asked for, if the request has a retry's


def item_id(request: Request, origin: Origin) -> str:
    """The id of a picture: a hash (32 hex digits) of its whole request and its model.

    A prompt that a language model rewrote counts as it was written: the next time it would be
    rewritten otherwise.
    """
    if request.enhancer is not None:
        request = request.changed(prompt=request.written)
    values = canonical(request).to_json() | {"model": origin.hash, "config": origin.config}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def picture_id(path: Path, model: Origin) -> str:
    """The id of a picture file, from its record; empty if it has none of ours.

    A record of an earlier version lacks the model's configuration, and is taken to mean `model`'s.
    """
    try:
        info = image_file.read(path)
    except BadFile:
        return ""
    if info.request is None or not info.pixels_sha256:
        return ""
    seed = info.request.seed if info.first_seed is None else info.first_seed
    origin = replace(info.origin, config=info.origin.config or model.config)
    return item_id(replace(info.request, seed=seed), origin)


def items(requests: Iterable[Request], output: Output, model: Origin | None) -> Iterator[Item]:
    """The items of a batch, each with a file name of its own.

    If the model's hash is not known (None), they have no ids.
    """
    if model is not None:
        output.model_hash = model.hash
    names: dict[str, int] = {}
    copies: Counter[str] = Counter()
    for index, request in enumerate(requests, start=1):
        name = output.name(request, index)
        number = names.get(name, 0) + 1
        while number > 1 and with_suffix(name, number) in names:
            number += 1
        names[name] = number
        names.setdefault(with_suffix(name, number), 1)
        key = "" if model is None else item_id(request, model)
        yield Item(index, request, name, number, key, copies[key])
        copies[key] += 1


def latent_path(folder: Path, item: Item, whole: bool = True) -> Path:
    """The path of an item's latent, of the last step or (`whole` is False) an earlier one."""
    return folder / (LATENT if whole else PARTIAL).format(f"{item.id}-{item.copy}")


def remove_latents(folder: Path, item: Item) -> None:
    """Remove an item's latents, if there are any."""
    for whole in (True, False):
        with suppress(OSError):
            latent_path(folder, item, whole).unlink()


class ResumeIndex:
    """The pictures of a folder by their ids, and this process's claims; a context ends them."""

    def __init__(self, output: Output, model: Origin) -> None:
        self.folder, self.model = output.folder, model
        self.paths: dict[str, list[Path]] = {}
        self.locks: dict[str, tuple[int, int]] = {}  # by id: descriptor, number of items
        names = [output.pattern] if output.exact else _names(output.folder, output.format)
        for name in sorted(names, key=lambda name: (len(name), name)):
            self._note(picture_id(self.folder / name, model), self.folder / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self.locks):
            self._unlock(key)

    def done(self, item: Item) -> Path | None:
        """The path of an item's picture, if it is known to exist."""
        paths = self.paths.get(item.id, [])
        return paths[item.copy] if item.copy < len(paths) else None

    def claimable(self, items: Iterable[Item], taken_by_others: list[Item]) -> Iterator[Item]:
        """Claim items and yield those to draw; append those that others draw to the list."""
        for item in items:
            claimed = self.claim(item)
            if claimed:
                yield item
            elif claimed is None:
                taken_by_others.append(item)
                if len(taken_by_others) % WAITING_MAX == 0:
                    taken_by_others[:] = [
                        one for one in taken_by_others if not self._find_image(one)
                    ]

    def wait(self, item: Item) -> bool:
        """Claim an item when no other process draws it any more; False if it is there."""
        while (claimed := self.claim(item)) is None:
            time.sleep(POLL_SECONDS)
        return claimed

    def claim(self, item: Item) -> bool | None:
        """Claim an item to draw; False if its picture exists, None if another process draws it."""
        if self.done(item):
            remove_latents(self.folder, item)  # a killed run may have left some
            return False
        if item.id not in self.locks:
            try:
                descriptor = files.claim(self._lock(item.id))
            except OSError as error:
                where = shown(self.folder)
                raise BadOutput(f"cannot write in {where}: {files.reason(error)}") from error
            if descriptor is None:
                return None
            self.locks[item.id] = (descriptor, 0)
        descriptor, count = self.locks[item.id]
        if path := self._find_image(item):
            self._note(item.id, path)
            remove_latents(self.folder, item)
            if not count:
                self._unlock(item.id)
            return False
        self.locks[item.id] = (descriptor, count + 1)
        return True

    def release(self, items: Iterable[Item]) -> None:
        """End claims: the pictures are written, or will not be."""
        for item in items:
            descriptor, count = self.locks[item.id]
            self.locks[item.id] = (descriptor, count - 1)
            if count == 1:
                self._unlock(item.id)

    def _find_image(self, item: Item) -> Path | None:
        """The picture of an item that another process wrote meanwhile, under any of its names."""
        number = 1 if item.copy else item.number
        before = 0  # copies under lower numbers
        while True:
            path = self.folder / with_suffix(item.name, number)
            if not os.path.lexists(path):
                if number >= item.number:
                    return None
            elif picture_id(path, self.model) == item.id:
                if before == item.copy:
                    return path
                before += 1
            number += 1

    def _note(self, key: str, path: Path) -> None:
        if key and path not in self.paths.get(key, []):
            self.paths.setdefault(key, []).append(path)

    def _lock(self, key: str) -> Path:
        return self.folder / files.LOCK.format(key)

    def _unlock(self, key: str) -> None:
        files.release(self._lock(key), self.locks.pop(key)[0])


def _names(folder: Path, format: Format) -> list[str]:
    """The names of the pictures of that format in a folder."""
    names = [(path.name, formats.by_suffix(path.name)) for path in files.entries(folder)]
    return [name for name, its in names if its is not None and its.name == format.name]
