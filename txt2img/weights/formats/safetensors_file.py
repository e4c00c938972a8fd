"""Weight files: headers, which import no torch, and writing.

Most are safetensors, single or sharded, whose headers the `safetensors` package parses, and refuses
those that do not agree with the file; GGUF files are parsed by weights/formats/gguf.py. Tensors are
read by weights/formats/tensors.py.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from txt2img.errors import BadFile, BadOutput, MissingWeights, UnknownLayout
from txt2img.system.files import (
    ADVICE,
    entries,
    open_regular,
    read_json,
    write_atomic,
)
from txt2img.system.text import escape, format_size, shown
from txt2img.weights.formats import quantized_layers
from txt2img.weights.formats.quantized_layers import FLOAT8

if TYPE_CHECKING:
    from torch import Tensor

HEADER_MAX = 16 * 2**20  # bytes
DIMENSIONS_MAX = 8
DTYPE = re.compile(r"BOOL|(?:F|BF|I|U)(8|16|32|64)(?:_E4M3|_E5M2)?")  # those that torch has
NAME_MAX = 120  # characters of a tensor's name in a message
GGUF = ".gguf"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PICKLE = "a pickled checkpoint, which can run any code when it is opened and so is refused"
CONVERT = "convert it to safetensors with a tool you trust, or download the .safetensors version"
# First bytes of other files that people take for weights, what they are, and advice.
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
    ((b"\x89png", b"\xff\xd8\xff", b"riff"), "a picture, not weights", "give a weight file"),
)


@dataclass(frozen=True)
class TensorRef:
    """A tensor in a file that is not read yet: a whole one, or a chunk of one, or a transpose."""

    path: Path
    key: str
    dtype: str  # as safetensors calls it: F16, BF16, F8_E4M3
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning, of the whole tensor
    rows: tuple[int, int] | None = None  # of the first axis, if not all
    swapped: bool = False  # the first and second half of the first axis exchanged
    transposed: bool = False  # a matrix that the file has as (columns, rows)
    scale: "TensorRef | None" = None  # numbers that multiply it: one, or one for each row
    rotation: int = 0  # inputs of a group that ConvRot rotates
    block: tuple[int, int] | None = None  # values and bytes of a block, in a GGUF file only

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored as small numbers with scales: in blocks, or ComfyUI's 8 bits."""
        return self.scale is not None or (self.block is not None and self.block[0] > 1)

    @property
    def is_float8(self) -> bool:
        """Whether it is stored in 8-bit floats without a scale."""
        return self.scale is None and self.dtype in FLOAT8

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        if self.block is not None:
            return -(-math.prod(self.shape) * self.block[1] // self.block[0])
        known = DTYPE.fullmatch(self.dtype)
        scales = 0 if self.scale is None else self.scale.nbytes
        return math.prod(self.shape) * int((known and known[1]) or 8) // 8 + scales

    def transpose(self) -> "TensorRef":
        """The matrix with its axes exchanged."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)

    def chunk(self, index: int, count: int) -> "TensorRef":
        """The index-th of `count` equal chunks along the first axis."""
        if not self.shape or self.shape[0] % count:
            raise MissingWeights(f"a fused tensor of shape {self.shape} cannot be cut in {count}")
        rows = self.shape[0] // count
        return self.take(index * rows, rows)

    def take(self, first: int, count: int) -> "TensorRef":
        """The `count` rows of the first axis from the `first` on. Raises MissingWeights."""
        if not self.shape or first + count > self.shape[0]:
            raise MissingWeights(
                f"a fused tensor of shape {self.shape} has no rows {first} to {first + count}"
            )
        start = first + (self.rows or (0,))[0]
        return replace(self, shape=(count, *self.shape[1:]), rows=(start, start + count))

    def swap_halves(self) -> "TensorRef":
        """The tensor with the halves of its first axis exchanged. Raises MissingWeights."""
        if not self.shape or self.shape[0] % 2:
            raise MissingWeights(f"a tensor of shape {self.shape} has no two halves")
        return replace(self, swapped=not self.swapped)


@dataclass(frozen=True)
class Header:
    """The metadata and tensors of a weight file, or of all its shards."""

    metadata: dict[str, str]
    tensors: dict[str, TensorRef]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return tuple(dict.fromkeys(ref.path for ref in self.tensors.values()))


def component(folder: Path, stem: str) -> Header:
    """The header of a network's weights in a folder, single or sharded; full precision first.

    Raises MissingWeights, BadFile; UnknownLayout if they are there as a pickle only, or quantised
    by a program whose way of it is not supported.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "quantization_config" in config:
        quantized_layers.refuse_method(config["quantization_config"], folder.name)
    for variant in ("", ".fp16"):
        single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if (folder / single).is_file():
            return header(folder / single)
        if (folder / index).is_file():
            return sharded(folder / index)
    there = entries(folder) if folder.is_dir() else []
    pickled = [path.name for path in there if path.suffix in PICKLES]
    if pickled:
        raise UnknownLayout(f"{folder.name}/{shown(pickled[0])} is {PICKLE}; {CONVERT}")
    raise MissingWeights(f"{folder.name}/{stem}.safetensors is missing; download the folder again")


def header(path: Path) -> Header:
    """The header of one safetensors or GGUF file. Raises BadFile, UnknownLayout."""
    with open_regular(path) as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf:
        return _gguf_header(path)
    whole = _header(path)
    return replace(whole, tensors=_with_scales(whole.tensors, whole.metadata))


def stem(path: Path) -> str:
    """A weight file's name without its ending."""
    return path.name.split(".safetensors")[0].removesuffix(GGUF)


def with_axes(ref: TensorRef, count: int) -> TensorRef:
    """A whole tensor with axes of size 1 before its own, if it has fewer than `count`."""
    return replace(ref, shape=(1,) * (count - len(ref.shape)) + ref.shape)


def quantized(tensors: Iterable[TensorRef]) -> str:
    """Types, bits and bytes of tensors of which some are quantised in blocks; empty for others."""
    refs = list(tensors)
    if not any(ref.is_quantized for ref in refs):
        return ""
    sizes: Counter[str] = Counter()
    for ref in refs:
        sizes[f"{ref.dtype} (ConvRot)" if ref.rotation else ref.dtype] += ref.nbytes
    count, size = sum(math.prod(ref.shape) for ref in refs), sizes.total()
    types = " and ".join(dtype for dtype, _ in sizes.most_common())
    return f"{types}, {8 * size / count:.3g} bits a weight, {format_size(size)}"


def _gguf_header(path: Path) -> Header:
    """The header of a GGUF file. Raises BadFile, UnknownLayout."""
    from txt2img.weights.formats import gguf, llama_cpp

    content = gguf.read_header(path)
    texts = {key: value for key, value in content.metadata.items() if isinstance(value, str)}
    tensors = {
        one.name: TensorRef(path, one.name, one.dtype, one.shape, one.start, block=one.block)
        for one in content.tensors
    }
    if names := llama_cpp.published_names(path.name, tensors, content.metadata):
        tensors = {ours: tensors[theirs] for theirs, ours in names.items()}
    return Header(texts, tensors)


def _header(path: Path) -> Header:
    """The header as it stands in the file. Raises BadFile, UnknownLayout."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        beginning = file.read(128)
    length = int.from_bytes(beginning[:8], "little")
    if len(beginning) < 8 or length > size - 8 or beginning[8:9] != b"{":
        _refuse(path, beginning, size)
    if length > HEADER_MAX:
        raise BadFile(f"{path.name}: a header of {length:,} bytes; at most {HEADER_MAX:,}")
    tensors: dict[str, TensorRef] = {}
    start = 8 + length
    try:
        with safe_open(path, "np", backend="pread") as opened:
            for key in opened.offset_keys():  # in the file's order, in which there are no gaps
                stored = opened.get_slice(key)
                dtype, shape = stored.get_dtype(), tuple(stored.get_shape())
                tensors[key] = _checked(TensorRef(path, key, dtype, shape, start))
                start += tensors[key].nbytes
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise broken(path, error) from error
    return Header(metadata, tensors)


def _checked(ref: TensorRef) -> TensorRef:
    """Return a tensor's entry if torch has its dtype and number of dimensions. Raises BadFile."""
    where = f"{ref.path.name}: {shown(ref.key, NAME_MAX)}"
    if not DTYPE.fullmatch(ref.dtype):
        raise BadFile(f"{where} has the dtype {ref.dtype}, which is not supported")
    if len(ref.shape) > DIMENSIONS_MAX:
        raise BadFile(f"{where} has {len(ref.shape)} dimensions; at most {DIMENSIONS_MAX}")
    return ref


def broken(path: Path, error: Exception) -> BadFile:
    """An error with what `safetensors` reports of a malformed file, in one short line."""
    reason = str(error).removeprefix("Error while deserializing header: ")
    if "file not fully covered" in reason:
        reason = "truncated, or has too many bytes at the end"
    return BadFile(f"{path.name}: {escape(reason[:200])}; {ADVICE}")


def sharded(index: Path) -> Header:
    """The header of all shards that an index.json names, which lie beside it. Raises BadFile."""
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise BadFile(f"{index.name}: no weight_map, so it is not the index of a sharded model")
    shards = dict.fromkeys(map(str, table.values()))
    headers = {shard: _header(_beside(index, shard)) for shard in shards}
    for name, shard in table.items():
        if name not in headers[shard].tensors:
            raise MissingWeights(
                f"{index.name}: {shown(name, NAME_MAX)} is not in {shard}; {ADVICE}"
            )
    tensors: dict[str, TensorRef] = {}
    for shard, content in headers.items():
        for name, ref in content.tensors.items():
            if table.get(name) != shard:
                raise MissingWeights(
                    f"{shard}: {shown(name, NAME_MAX)} is not in the index {index.name}"
                )
            tensors[name] = ref
    return Header({}, _with_scales(tensors, {}))


def write(tensors: "Mapping[str, Tensor]", path: Path, metadata: Mapping[str, str]) -> None:
    """Write one safetensors file: whole, or not at all. Raises BadOutput."""
    from safetensors.torch import save

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    try:
        write_atomic(save(whole, dict(metadata)), path, overwrite=True)
    except OSError as error:
        raise BadOutput(f"cannot write {shown(path.name)}: {error.strerror}") from error


def _refuse(path: Path, beginning: bytes, size: int) -> None:
    """Raise an error that tells what a file is that is no safetensors file."""
    if not size:
        raise BadFile(f"{path.name}: an empty file; {ADVICE}")
    for signs, what, remedy in LOOKALIKES:
        if beginning.lower().lstrip().startswith(tuple(sign.lower() for sign in signs)):
            raise UnknownLayout(f"{path.name} is {what}; {remedy}")
    if path.suffix.lower() in PICKLES:
        raise UnknownLayout(f"{path.name} is {PICKLE}; {CONVERT}")
    if _is_text(beginning):
        raise BadFile(f"{path.name} is a text, not weights; give a weight file")
    raise BadFile(f"{path.name}: not a safetensors file, or truncated; {ADVICE}")


def _is_text(beginning: bytes) -> bool:
    """Whether a file begins with text: UTF-8, perhaps cut in a character, without controls."""
    text = beginning.decode("utf-8", "replace").rstrip("\ufffd")
    return "\ufffd" not in text and all(c.isprintable() or c in "\t\r\n" for c in text)


def _with_scales(
    tensors: dict[str, TensorRef], metadata: Mapping[str, str]
) -> dict[str, TensorRef]:
    """The tensors of which those that ComfyUI quantised have their scales. Raises as `header`."""
    endings = {name.rpartition(".")[2] for name in tensors}
    if quantized_layers.SIGNS.isdisjoint(endings):
        return tensors
    scales, dropped = quantized_layers.scales(tensors, metadata)
    attached = {
        name: replace(tensors[name], scale=tensors[scale], rotation=group)
        for name, (scale, group) in scales.items()
    }
    return {name: ref for name, ref in (tensors | attached).items() if name not in dropped}


def _beside(index: Path, name: str) -> Path:
    """A shard's path; its name may not lead out of the index's folder."""
    if name != os.path.basename(name) or "\\" in name or not name.endswith(".safetensors"):
        raise BadFile(
            f"{index.name}: {shown(name, NAME_MAX)} is not the plain name of a .safetensors file"
        )
    return index.parent / name
