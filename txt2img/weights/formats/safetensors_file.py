"""Safetensors files, sharded or not: checked before they are read, and written whole.

The reader is our own: a header is believed only where it agrees with the file, and tensors are
copied (weights/reading.py), so that a file that shrinks meanwhile is an error, not a dead process.
Headers are read without torch, which takes seconds to import.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.errors import BadFile, BadOutput, MissingWeights, UnknownLayout
from txt2img.system.files import ADVICE, open_regular, parse_object, read_json, write_atomic
from txt2img.system.text import shown
from txt2img.weights.formats.dtypes import SIZES

if TYPE_CHECKING:
    from torch import Tensor

HEADER_MAX = 16 * 2**20  # bytes
DIMENSIONS_MAX = 8
NAME_MAX = 120  # characters of a tensor's name in a message
EIGHT_BITS = ("F8_E4M3", "F8_E5M2")
SCALED = "scaled_fp8"  # an empty tensor that says which 8-bit type a file has
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PICKLE = "a pickled checkpoint, which can run any code when it is opened and so is refused"
CONVERT = "convert it to safetensors with a tool you trust, or download the .safetensors version"
# How other things that end up under a model's name begin, and what to do about each.
LOOKALIKES: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        PICKLE,
        CONVERT,
    ),
    (
        (b"version https://git-lfs",),
        "a Git LFS pointer, not the weights themselves",
        f"run `git lfs pull`, or {ADVICE}",
    ),
    ((b"<!doctype", b"<html", b"<?xml"), "a web page, not weights", ADVICE),
    ((b"gguf",), "a GGUF file, which is not supported", "use a .safetensors version"),
    ((b"\x89png", b"\xff\xd8\xff", b"riff"), "a picture, not weights", "give a weight file"),
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its bytes are and what they mean; nothing is read yet."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning
    size: int  # bytes
    turned: bool = False  # a matrix of which `shape` says (rows, columns) the other way round
    scale: "Stored | None" = None  # one number that all values are to be multiplied by

    def turn(self) -> "Stored":
        """The matrix with its two axes changed over."""
        return replace(self, shape=self.shape[::-1], turned=not self.turned)

    def part(self, index: int, count: int) -> "Stored":
        """The index-th of `count` equal parts along the first axis."""
        if not self.shape or self.shape[0] % count:
            raise MissingWeights(f"a fused tensor of shape {self.shape} cannot be cut in {count}")
        shape, size = (self.shape[0] // count, *self.shape[1:]), self.size // count
        return replace(self, shape=shape, start=self.start + index * size, size=size)


@dataclass(frozen=True)
class Header:
    """What is in a weight file, or in all shards of one."""

    metadata: dict[str, str]
    tensors: dict[str, Stored]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(dict.fromkeys(stored.path for stored in self.tensors.values()))


def component(folder: Path, stem: str) -> Header:
    """The header of one network's weights in a folder, whole or in shards; full precision first.

    Raises MissingWeights, BadFile; UnknownLayout if they are there as a pickle only.
    """
    for variant in ("", ".fp16"):
        single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if (folder / single).is_file():
            return header(folder / single)
        if (folder / index).is_file():
            return sharded(folder / index)
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
    if pickled:
        raise UnknownLayout(f"{folder.name}/{shown(pickled[0])} is {PICKLE}; {CONVERT}")
    raise MissingWeights(f"{folder.name}/{stem}.safetensors is missing; download the folder again")


def header(path: Path) -> Header:
    """The checked header of one safetensors file, its scales folded in; raises as `_header`."""
    whole = _header(path)
    return replace(whole, tensors=_scaled(whole.tensors))


def _header(path: Path) -> Header:
    """The checked header of one safetensors file. Raises BadFile, UnknownLayout."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        beginning = prefix + file.read(120)
        if len(prefix) < 8 or length > size - 8 or beginning[8:9] != b"{":
            _refuse(path, beginning, size)
        if length > HEADER_MAX:
            raise BadFile(f"{path.name}: a header of {length:,} bytes; at most {HEADER_MAX:,}")
        file.seek(8)
        text = file.read(length)
    rows = parse_object(text, path.name)
    metadata = _metadata(rows.pop("__metadata__", {}), path.name)
    tensors = {name: _stored(path, name, row, 8 + length) for name, row in rows.items()}
    _check_ranges(path.name, tensors, 8 + length, size)
    return Header(metadata, tensors)


def sharded(index: Path) -> Header:
    """The header of all shards that an index.json names, which lie beside it. Raises BadFile."""
    content = read_json(index)
    table = content.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BadFile(f"{index.name}: no weight_map, so it is not the index of a sharded model")
    headers = {name: _header(index.parent / _base(index, name)) for name in _unique(table)}
    for name, shard in table.items():
        if name not in headers[shard].tensors:
            raise MissingWeights(
                f"{index.name}: {shown(name, NAME_MAX)} is not in {shard}; {ADVICE}"
            )
    tensors: dict[str, Stored] = {}
    for shard, content_of in headers.items():
        for name, stored in content_of.tensors.items():
            if table.get(name) != shard:
                raise MissingWeights(
                    f"{shard}: {shown(name, NAME_MAX)} is not in the index {index.name}"
                )
            tensors[name] = stored
    return Header({}, _scaled(tensors))


def write(tensors: "Mapping[str, Tensor]", path: Path, metadata: Mapping[str, str]) -> None:
    """Write one safetensors file: whole, or not at all. Raises BadOutput."""
    from safetensors.torch import save

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        write_atomic(save(whole, dict(metadata)), path, overwrite=True)
    except OSError as error:
        raise BadOutput(f"cannot write {shown(path.name)}: {error.strerror}") from error


def _refuse(path: Path, beginning: bytes, size: int) -> None:
    """Say what the file probably is, since it is no safetensors file."""
    if not size:
        raise BadFile(f"{path.name}: an empty file; {ADVICE}")
    for signs, what, remedy in LOOKALIKES:
        if beginning.lower().lstrip().startswith(tuple(sign.lower() for sign in signs)):
            raise UnknownLayout(f"{path.name} is {what}; {remedy}")
    if path.suffix.lower() in PICKLES:
        raise UnknownLayout(f"{path.name} is {PICKLE}; {CONVERT}")
    raise BadFile(f"{path.name}: truncated, or not a safetensors file; {ADVICE}")


def _metadata(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadFile(f"{where}: __metadata__ may hold texts only")
    return value


def _stored(path: Path, name: str, row: object, base: int) -> Stored:
    """One row of a header, checked for itself; offsets count from `base`."""
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(
            f"{path.name}: {shown(name, NAME_MAX)} is not described by dtype, shape, data_offsets"
        )
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise BadFile(f"{path.name}: {shown(name, NAME_MAX)} has the unknown type {shown(dtype)}")
    if not _naturals(shape) or len(shape) > DIMENSIONS_MAX:
        raise BadFile(f"{path.name}: {shown(name, NAME_MAX)} has no usable shape: {shown(shape)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadFile(f"{path.name}: {shown(name, NAME_MAX)} has no usable range: {shown(offsets)}")
    size = offsets[1] - offsets[0]
    if math.prod(shape) * SIZES[dtype] != size:
        raise BadFile(
            f"{path.name}: {shown(name, NAME_MAX)} of shape {shown(shape)} has {size:,} bytes"
        )
    return Stored(path, dtype, tuple(shape), base + offsets[0], size)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_ranges(where: str, tensors: dict[str, Stored], base: int, size: int) -> None:
    """The tensors must fill the file from the header to the end, without gap or overlap."""
    end = base
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if stored.start != end:
            raise BadFile(
                f"{where}: a gap or overlap in the file before {shown(name, NAME_MAX)}; {ADVICE}"
            )
        end += stored.size
    if end > size:
        raise BadFile(f"{where}: truncated: {size:,} of {end:,} bytes are there; {ADVICE}")
    if end < size:
        raise BadFile(f"{where}: {size - end:,} bytes too many at the end; {ADVICE}")


def _scaled(tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors, each 8-bit weight with the factor that is stored beside it, as ComfyUI does.

    The factors of what goes into a layer serve arithmetic in 8 bits alone, and are left out.
    """
    made = dict(tensors)
    for name, scale in tensors.items():
        weight = name.removesuffix("scale_weight") + "weight"
        if not name.endswith(".scale_weight") or weight not in tensors:
            continue
        if tensors[weight].dtype in EIGHT_BITS and math.prod(scale.shape) == 1:
            made[weight] = replace(tensors[weight], scale=made.pop(name))
            made.pop(name.removesuffix("scale_weight") + "scale_input", None)
    return {name: stored for name, stored in made.items() if name.split(".")[-1] != SCALED}


def _unique(table: dict[str, object]) -> list[str]:
    """The shards' names, each once."""
    return list(
        dict.fromkeys(name if isinstance(name, str) else repr(name) for name in table.values())
    )


def _base(index: Path, name: str) -> str:
    """A shard's name, which may not lead out of the index's folder."""
    if name != os.path.basename(name) or "\\" in name or not name.endswith(".safetensors"):
        raise BadFile(
            f"{index.name}: {shown(name, NAME_MAX)} is not the plain name of a .safetensors file"
        )
    return name
