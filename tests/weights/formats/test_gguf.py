"""GGUF files are read as the gguf package writes them, and malformed ones refused in one line."""

import struct
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from tests.support.gguf_files import blocks, dequantized, write
from txt2img.errors import BadFile, Txt2imgError, UnknownLayout
from txt2img.weights.formats import dequantize, safetensors_file, tensors
from txt2img.weights.formats.gguf import DIMENSIONS_MAX, MAGIC, TYPES

CPU = torch.device("cpu")
BY_PACKAGE = ("Q2_K", "Q3_K", "IQ4_XS", "TQ2_0")
FLOATS = ("F32", "F16", "BF16")
HUGE = 2**60
HEADER_MAX = 2**16  # in these tests


def test_types_are_those_of_the_package() -> None:
    theirs = {kind.value: (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: TYPES[number] for number in theirs} == theirs


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # scales that are infinite
@pytest.mark.parametrize("kind", [*dequantize.KERNELS, *BY_PACKAGE])
def test_values_are_the_packages_bit_for_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of random bytes, so that every bit of a block counts; in pieces, too."""
    values, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    content = np.random.default_rng(0).integers(0, 256, (37, nbytes), dtype=np.uint8)
    theirs = torch.from_numpy(gguf.dequantize(content, GGMLQuantizationType[kind]))
    monkeypatch.setattr(dequantize, "TILE", 8 * values)
    ours = dequantize.dequantize(torch.from_numpy(content), kind, values)
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("kind", [*FLOATS, *dequantize.KERNELS, *BY_PACKAGE[:3]])
def test_tensors_of_every_type_are_read(tmp_path: Path, kind: str) -> None:
    written = {"a.weight": torch.randn(6, 512), "b.weight": torch.randn(12, 4, 8, 8)}
    read = write(tmp_path / "a.gguf", written | {"c": torch.randn(3)}, dict.fromkeys(written, kind))
    header = safetensors_file.header(tmp_path / "a.gguf")
    assert {name: ref.shape for name, ref in header.tensors.items()} == {
        "a.weight": (6, 512),
        "b.weight": (12, 4, 8, 8),
        "c": (3,),
    }
    assert header.metadata["general.architecture"] == "flux"
    assert {header.tensors[name].dtype for name in written} == {kind}
    stored = sum(ref.nbytes for ref in header.tensors.values())
    assert 0 <= (tmp_path / "a.gguf").stat().st_size - stored < 1000
    ours = tensors.read(header.tensors, CPU, torch.float32)
    assert all(torch.equal(ours[name], value) for name, value in read.items())


def test_parts_of_a_tensor_are_read_wherever_blocks_begin(tmp_path: Path) -> None:
    """Filters in blocks that reach over several rows; halves exchanged; a transpose."""
    made = {"odd": torch.randn(12, 3, 8, 2), "even": torch.randn(6, 64)}
    read = write(tmp_path / "a.gguf", made, dict.fromkeys(made, "Q8_0"))
    odd, even = safetensors_file.header(tmp_path / "a.gguf").tensors.values()
    parts = {
        "rows": (odd.take(3, 4), read["odd"][3:7]),
        "part": (odd.chunk(2, 3).chunk(1, 2), read["odd"][10:12]),
        "swapped": (even.swap_halves(), read["even"].roll(3, 0)),
        "turned": (even.take(2, 3).transpose(), read["even"][2:5].T),
    }
    ours = tensors.read({name: ref for name, (ref, _) in parts.items()}, CPU, torch.float32)
    for name, (_, expected) in parts.items():
        assert torch.equal(ours[name], expected), name


def test_a_type_that_needs_the_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.gguf", {"a": torch.randn(2, 256)}, {"a": "Q3_K"})
    header = safetensors_file.header(tmp_path / "a.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(Txt2imgError, match=r"type Q3_K need.*pip install gguf"):
        tensors.read(header.tensors, CPU, torch.float32)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    content = blocks(torch.randn(1, 32), "Q8_0")
    content[0, :2] = np.frombuffer(np.float16("inf").tobytes(), np.uint8)
    assert not dequantized(content, "Q8_0").isfinite().all()
    path = raw(tmp_path / "a.gguf", tensors=[entry(b"a", (32,), 8)], data=content.tobytes())
    with pytest.raises(BadFile, match='"a" contains values that are not finite'):
        tensors.read(safetensors_file.header(path).tensors, CPU, torch.float32)


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def entry(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry, with ggml's order of dimensions."""
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def raw(
    path: Path,
    metadata: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = bytes(512),
    version: bytes = b"\x03\0\0\0",
    counts: tuple[int, int] | None = None,
) -> Path:
    """A file with any header over any data."""
    pairs, entries = metadata or [], tensors or []
    counted = (len(entries), len(pairs)) if counts is None else counts
    header = MAGIC + version + struct.pack("<QQ", *counted) + b"".join([*pairs, *entries])
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


SHAPE = b"comfy.gguf.orig_shape.a"
MALFORMED: dict[str, tuple[dict[str, object], str]] = {
    "count of tensors": ({"counts": (HUGE, 0)}, "claims 1,152,921,504,606,846,976 tensors"),
    "count of metadata": ({"counts": (0, HUGE)}, "claims .* entries of metadata"),
    "fewer tensors than claimed": ({"counts": (9, 0), "data": b""}, "truncated"),
    "long key": ({"metadata": [struct.pack("<Q", HUGE)]}, "key of its metadata of .* bytes"),
    "long text": ({"metadata": [pair(b"k", 8, struct.pack("<Q", HUGE))]}, "text of its metadata"),
    "long list": ({"metadata": [pair(b"k", 9, array(6, HUGE))]}, "truncated, or its header claims"),
    "long list of texts": (
        {"metadata": [pair(b"k", 9, array(8, HUGE))], "data": bytes(HEADER_MAX + 64)},
        "a header of more than",
    ),
    "list of lists": ({"metadata": [pair(b"k", 9, array(9, 1))]}, "a list of the type 9"),
    "kind of value": ({"metadata": [pair(b"k", 13, bytes(8))]}, "a value of the type 13"),
    "alignment": (
        {"metadata": [pair(b"general.alignment", 4, struct.pack("<I", 24))]},
        "general.alignment is 24",
    ),
    "type of the alignment": (
        {"metadata": [pair(b"general.alignment", 8, text(b"32"))]},
        'general.alignment is "32"',
    ),
    "dimensions": ({"tensors": [entry(b"a", (1,) * (DIMENSIONS_MAX + 1))]}, "has 9 dimensions"),
    "many dimensions": ({"tensors": [text(b"a") + b"\xff" * 40]}, "dimensions; at most 8"),
    "size": ({"tensors": [entry(b"a", (HUGE, HUGE))]}, "larger than the whole file"),
    "type": ({"tensors": [entry(b"a", (4,), 99)]}, "has the type 99"),
    "removed type": ({"tensors": [entry(b"a", (32,), 4)]}, "has the type 4"),
    "block count": ({"tensors": [entry(b"a", (48, 2), 8)]}, r"no whole blocks of 32 \(Q8_0\)"),
    "truncated": ({"tensors": [entry(b"a", (4, 8))], "data": bytes(100)}, "ends at byte"),
    "out of line": ({"tensors": [entry(b"a", (4,), 0, 8)]}, "out of line"),
    "overlap": (
        {"tensors": [entry(b"a", (16,)), entry(b"b", (16,), 0, 32)]},
        "inside another",
    ),
    "twice": ({"tensors": [entry(b"a", (8,)), entry(b"a", (8,), 0, 32)]}, "two tensors are called"),
    "far away": ({"tensors": [entry(b"a", (4,), 0, 2**63)]}, "truncated"),
    "original shape": (
        {
            "metadata": [pair(SHAPE, 9, array(5, 2, struct.pack("<ii", 3, 5)))],
            "tensors": [entry(b"a", (16,))],
        },
        r"of shape \(16,\) claims to have been \(3, 5\)",
    ),
    "negative original shape": (
        {
            "metadata": [pair(SHAPE, 9, array(5, 2, struct.pack("<ii", -4, -4)))],
            "tensors": [entry(b"a", (16,))],
        },
        "claims to have been",
    ),
    "original shape in words": (
        {"metadata": [pair(SHAPE, 8, text(b"4x4"))], "tensors": [entry(b"a", (16,))]},
        'claims to have been "4x4"',
    ),
    "old version": ({"version": b"\x01\0\0\0"}, "of version 1; supported are"),
    "big-endian": ({"version": b"\0\0\0\x03"}, "big-endian; supported are"),
    "language model": (
        {"tensors": [entry(b"blk.0.attn_q.weight", (4,))]},
        'is a language model with llama.cpp\'s names, "of unknown kind"',
    ),
    "another language model": (
        {
            "metadata": [pair(b"general.architecture", 8, text(b"llama"))],
            "tensors": [entry(b"token_embd.weight", (4,))],
        },
        'names, "llama", which no supported model reads; text encoders as GGUF are t5,',
    ),
    "a Qwen3 of another kind": (
        {
            "metadata": [
                pair(b"general.architecture", 8, text(b"qwen3")),
                pair(b"qwen3.rope.freq_base", 6, struct.pack("<f", 5e6)),
            ],
            "tensors": [entry(b"token_embd.weight", (4,))],
        },
        "its qwen3.rope.freq_base is 5000000.0, not 1e\\+06",
    ),
    "split": (
        {"metadata": [pair(b"split.count", 2, struct.pack("<H", 3))]},
        "one part of a split GGUF file",
    ),
}


@pytest.mark.parametrize(("content", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_line_in_little_memory(
    tmp_path: Path, content: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("txt2img.weights.formats.gguf.HEADER_MAX", HEADER_MAX)
    path = raw(tmp_path / "a.gguf", **content)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match=words) as caught:
            safetensors_file.header(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value) and "a.gguf" in str(caught.value)


def test_any_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {"a": torch.randn(4, 32), "b": torch.randn(3)}, {"a": "Q8_0"})
    whole = (tmp_path / "a.gguf").read_bytes()
    last = max(
        one.start + one.nbytes
        for one in safetensors_file.header(tmp_path / "a.gguf").tensors.values()
    )
    for length in range(4, last):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(BadFile, match="truncated"):
            safetensors_file.header(tmp_path / "cut.gguf")


def test_a_part_of_a_split_file_is_named_before_it_is_read(tmp_path: Path) -> None:
    path = raw(tmp_path / "flux-00001-of-00003.gguf")
    with pytest.raises(UnknownLayout, match=r"one part of a split .* llama-gguf-split --merge"):
        safetensors_file.header(path)


def test_a_file_cut_while_it_is_in_use_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {"a": torch.randn(64, 32)}, {"a": "Q8_0"})
    header = safetensors_file.header(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes((tmp_path / "a.gguf").read_bytes()[:900])
    with pytest.raises(BadFile, match="was changed while it was in use"):
        tensors.read(header.tensors, CPU, torch.float32)
