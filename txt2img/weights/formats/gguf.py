"""GGUF files: headers, which import neither torch nor the `gguf` package.

That package maps the whole file, and follows any count that a header claims; these reads are
bounded. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import re
import struct
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import NoReturn

from txt2img.errors import BadFile, UnknownLayout
from txt2img.system.files import ADVICE, open_regular
from txt2img.system.text import shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_MAX = 16 * 2**20  # bytes
TENSORS_MAX, METADATA_MAX = 65_536, 65_536
NAME_MAX, TEXT_MAX = 512, 2**16  # bytes of a name, and of a text that is kept
DIMENSIONS_MAX = 8
LIST_MAX = 16  # numbers of a list that is kept
ALIGNMENT_MAX = 2**16
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # city96's key of a shape before blocks were made
NUMBERS = {
    **dict(enumerate("BbHhIif?")),
    10: "Q",
    11: "q",
    12: "d",
}  # types of metadata, as `struct` calls them
STRING, ARRAY = 8, 9
# Types of tensors by number: name, values of a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

Value = str | int | float | bool | tuple[int | float | bool, ...]


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's entry: its shape is torch's, last axis fastest, which is ggml's reversed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    block: tuple[int, int]  # values and bytes of a block
    start: int  # bytes from the file's beginning

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) // self.block[0] * self.block[1]


@dataclass(frozen=True)
class GGUFHeader:
    """The metadata and tensors of a GGUF file; long texts and lists are left out."""

    metadata: dict[str, Value] = field(default_factory=dict)
    tensors: tuple[GGUFTensor, ...] = ()


def read_header(path: Path) -> GGUFHeader:
    """Read a file's header. Raises BadFile; UnknownLayout for what is not supported."""
    if SPLIT.search(path.name):
        _refuse_split(path)
    with open_regular(path) as file:
        header = _Reader(path, file).read()
    if header.metadata.get("split.count", 0) not in (0, 1):
        _refuse_split(path)
    return header


def _refuse_split(path: Path) -> NoReturn:
    raise UnknownLayout(
        f"{shown(path.name)} is one part of a split GGUF file, which is not supported; put the "
        "parts together with llama-gguf-split --merge, or download a file in one part"
    )


class _Reader:
    """A header's parser, which reads no more than HEADER_MAX bytes."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0

    def read(self) -> GGUFHeader:
        """The whole header. Raises BadFile, UnknownLayout."""
        if self.take(4) != MAGIC:
            self.fail("not a GGUF file")
        version = self.whole("I")
        if version not in VERSIONS:
            big = version in (int.from_bytes(v.to_bytes(4, "little"), "big") for v in VERSIONS)
            kind = "big-endian" if big else f"of version {version:,}"
            allowed = " and ".join(map(str, VERSIONS))
            raise UnknownLayout(
                f"{self.path.name} is a GGUF file {kind}; supported are little-endian ones of "
                f"version {allowed}"
            )
        tensors = self.count("tensors", TENSORS_MAX)
        metadata: dict[str, Value] = {}
        for _ in range(self.count("entries of metadata", METADATA_MAX)):
            key = self.text(NAME_MAX, "a key of its metadata")
            value = self.value(self.whole("I"))
            if value is not None:
                metadata[key] = value
        rows = [self.entry(metadata) for _ in range(tensors)]
        return GGUFHeader(metadata, self.placed(rows, self.alignment(metadata)))

    def alignment(self, metadata: dict[str, Value]) -> int:
        """The multiple that tensors begin at. Raises BadFile."""
        value = metadata.get("general.alignment", 32)
        if type(value) is not int or not 8 <= value <= ALIGNMENT_MAX or value & (value - 1):
            self.fail(f"general.alignment is {shown(value)}, no power of 2 from 8 on")
        return value

    def entry(self, metadata: dict[str, Value]) -> GGUFTensor:
        """One tensor's entry, whose start is still its offset in the data. Raises BadFile."""
        name = self.text(NAME_MAX, "a tensor's name")
        where = shown(name, 120)
        dimensions = self.whole("I")
        if dimensions > DIMENSIONS_MAX:
            self.fail(f"{where} has {dimensions:,} dimensions; at most {DIMENSIONS_MAX}")
        shape = tuple(self.whole("Q") for _ in range(dimensions))[::-1]
        number, start = self.whole("I"), self.whole("Q")
        if number not in TYPES:
            self.fail(f"{where} has the type {number:,}, which ggml does not have")
        dtype, *block = TYPES[number]
        if (shape[-1] if shape else 1) % block[0]:
            self.fail(f"{where} {shape} has rows that are no whole blocks of {block[0]} ({dtype})")
        original = metadata.get(f"{ORIGINAL_SHAPE}{name}")
        if original is not None:
            shape = self.original_shape(where, shape, original)
        if math.prod(shape) * block[1] // block[0] > self.size:
            self.fail(f"{where} {shape} is larger than the whole file")
        return GGUFTensor(name, dtype, shape, (block[0], block[1]), start)

    def original_shape(self, where: str, shape: tuple[int, ...], given: Value) -> tuple[int, ...]:
        """A tensor's shape before blocks were made. Raises BadFile unless it has as many values."""
        sizes = given if isinstance(given, tuple) else ()
        original = tuple(size for size in sizes if type(size) is int and size >= 0)
        fits = len(original) == len(sizes) and math.prod(original) == math.prod(shape)
        if not original or not fits or len(original) > DIMENSIONS_MAX:
            self.fail(f"{where} of shape {shape} claims to have been {shown(given)}")
        return original

    def placed(self, rows: list[GGUFTensor], alignment: int) -> tuple[GGUFTensor, ...]:
        """Tensors in the file's order, with their places in it. Raises BadFile if they overlap."""
        end = begin = -(-self.position // alignment) * alignment
        names: set[str] = set()
        result = []
        for row in sorted(rows, key=lambda one: (one.start, one.nbytes)):
            where, start = shown(row.name, 120), begin + row.start
            if row.name in names:
                self.fail(f"two tensors are called {where}")
            if row.start % alignment or start < end:
                self.fail(f"{where} begins at {row.start:,}, inside another or out of line")
            names.add(row.name)
            end = start + row.nbytes
            if end > self.size:
                self.fail(f"truncated: {where} ends at byte {end:,} of {self.size:,}")
            result.append(GGUFTensor(row.name, row.dtype, row.shape, row.block, start))
        return tuple(result)

    def value(self, kind: int) -> Value | None:
        """One value of metadata; None for long texts and lists. Raises BadFile."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text(HEADER_MAX, "a text of its metadata")
        if kind != ARRAY:
            self.fail(f"its metadata has a value of the type {kind:,}, which GGUF does not have")
        item, count = self.whole("I"), self.whole("Q")
        if item == STRING:
            for _ in range(count):  # each takes 8 bytes at least, so HEADER_MAX ends this
                self.skip(self.whole("Q"))
            return None
        if item not in NUMBERS:
            self.fail(f"its metadata has a list of the type {item:,}, which is not supported")
        if count > LIST_MAX:
            self.skip(count * struct.calcsize(f"<{NUMBERS[item]}"))
            return None
        return tuple(self.number(NUMBERS[item]) for _ in range(count))

    def text(self, most: int, what: str) -> str:
        """A text, escaped where it is not UTF-8; only its beginning if long. Raises BadFile."""
        length = self.whole("Q")
        if length > most:
            self.fail(f"{what} of {length:,} bytes; at most {most:,}")
        content = self.take(min(length, TEXT_MAX))
        self.skip(length - len(content))
        return content.decode("utf-8", "backslashreplace")

    def count(self, what: str, most: int) -> int:
        """A number of things. Raises BadFile if there are more than `most`."""
        number = self.whole("Q")
        if number > most:
            self.fail(f"it claims {number:,} {what}; at most {most:,}")
        return number

    def number(self, kind: str) -> int | float | bool:
        """A number in one of `struct`'s formats."""
        content = self.take(struct.calcsize(f"<{kind}"))
        value: int | float | bool = struct.unpack(f"<{kind}", content)[0]
        return value

    def whole(self, kind: str) -> int:
        """A whole number in one of `struct`'s formats."""
        return int(self.number(kind))

    def take(self, count: int) -> bytes:
        """The next bytes. Raises BadFile where the file or the header ends before."""
        self.ahead(count)
        content = self.file.read(count)
        if len(content) < count:
            self.fail("truncated")
        return content

    def skip(self, count: int) -> None:
        """Go on behind the next bytes. Raises as `take`."""
        self.ahead(count)
        self.file.seek(self.position)

    def ahead(self, count: int) -> None:
        """Move the position. Raises BadFile behind the end of the file, or of any true header."""
        self.position += count
        if self.position > self.size:
            self.fail("truncated, or its header claims more than there is")
        if self.position > HEADER_MAX:
            self.fail(f"a header of more than {HEADER_MAX:,} bytes")

    def fail(self, reason: str) -> NoReturn:
        """Raise BadFile with the file's name."""
        raise BadFile(f"{self.path.name}: {reason}; {ADVICE}")
