"""Weight files are read, or refused in one line; files that look like weights are named."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from txt2img.errors import BadFile, BadOutput, MissingWeights
from txt2img.system import files
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats import tensors as reading
from txt2img.weights.registry.hashes import sha256

CPU = torch.device("cpu")
Row = dict[str, object]


def raw(path: Path, rows: dict[str, Row], body: bytes, prefix: bytes = b"") -> Path:
    """A file with any header over any body."""
    text = prefix or json.dumps(rows).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def row(dtype: str = "F32", shape: object = (2,), start: object = 0, end: object = 8) -> Row:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}  # type: ignore[call-overload]


def test_header_and_tensors_equal_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"b": torch.randn(3, 4), "a": torch.randn(5).half(), "c": torch.randn(2).bfloat16()}
    save_file(tensors, path, {"format": "pt"})
    header = safetensors_file.header(path)
    assert header.metadata == {"format": "pt"}
    assert {n: s.shape for n, s in header.tensors.items()} == {"b": (3, 4), "a": (5,), "c": (2,)}
    read = reading.read(header.tensors, CPU, torch.float32)
    assert all(torch.equal(read[name], value.float()) for name, value in tensors.items())


def test_a_scale_of_another_kind_stays_a_tensor_of_its_own(tmp_path: Path) -> None:
    rows = {"a.weight": torch.ones(3, 2), "a.scale_weight": torch.tensor(2.0)}
    save_file(rows, tmp_path / "a.safetensors")
    assert set(safetensors_file.header(tmp_path / "a.safetensors").tensors) == set(rows)


def test_a_chunk_is_of_the_first_axis(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    save_file({"a": whole}, tmp_path / "a.safetensors")
    stored = safetensors_file.header(tmp_path / "a.safetensors").tensors["a"]
    parts = reading.read({str(i): stored.chunk(i, 3) for i in range(3)}, CPU, torch.float32)
    assert torch.equal(torch.cat([parts["0"], parts["1"], parts["2"]]), whole)


def test_rows_of_any_number_are_taken_and_halves_swapped(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    save_file({"a": whole}, tmp_path / "a.safetensors")
    stored = safetensors_file.header(tmp_path / "a.safetensors").tensors["a"]
    wanted = {"rows": stored.take(1, 5).take(1, 2), "swapped": stored.swap_halves()}
    parts = reading.read(wanted, CPU, torch.float32)
    assert torch.equal(parts["rows"], whole[2:4])
    assert torch.equal(parts["swapped"], torch.cat([whole[3:], whole[:3]]))
    with pytest.raises(MissingWeights, match="has no rows 5 to 7"):
        stored.take(5, 2)
    with pytest.raises(MissingWeights, match="has no two halves"):
        stored.take(0, 3).swap_halves()


BAD_HEADERS: list[tuple[str, dict[str, Row], bytes, bytes, str]] = [
    ("truncated body", {"a": row()}, b"\0" * 7, b"", "truncated"),
    ("bytes left over", {"a": row()}, b"\0" * 9, b"", "too many bytes"),
    ("gap", {"a": row(start=4, end=12)}, b"\0" * 12, b"", "invalid offset for tensor `a`"),
    (
        "overlap",
        {"a": row(), "b": row(start=4, end=12)},
        b"\0" * 12,
        b"",
        "invalid offset for tensor `b`",
    ),
    ("shape against range", {"a": row(shape=(3,))}, b"\0" * 8, b"", "invalid shape"),
    ("negative shape", {"a": row(shape=(-2, -1))}, b"\0" * 8, b"", "integer `-2`, expected usize"),
    ("huge shape", {"a": row(shape=(2**62, 2**62))}, b"\0" * 8, b"", "overflow"),
    (
        "true as a size",
        {"a": row(shape=(True, 2))},
        b"\0" * 8,
        b"",
        "boolean `true`, expected usize",
    ),
    ("unknown type", {"a": row("F31")}, b"\0" * 8, b"", "unknown variant `F31`"),
    ("4-bit type", {"a": row("F4", (16,))}, b"\0" * 8, b"", "dtype F4, which is not supported"),
    ("type is a list", {"a": row() | {"dtype": ["F32"]}}, b"\0" * 8, b"", "invalid type: sequence"),
    ("many dimensions", {"a": row(shape=[1] * 8 + [2])}, b"\0" * 8, b"", "9 dimensions"),
    ("backwards range", {"a": row(start=8, end=0)}, b"\0" * 8, b"", "invalid offset"),
    ("float range", {"a": row(end=8.0)}, b"\0" * 8, b"", "floating point `8.0`"),
    (
        "metadata of numbers",
        {"__metadata__": {"a": 1}, "a": row()},
        b"\0" * 8,
        b"",
        "expected a string",
    ),
    ("broken JSON", {}, b"", b'{"a": ', "invalid JSON"),
    ("no UTF-8", {}, b"", b'{"\xff": 1}', "invalid UTF-8"),
    ("deep JSON", {}, b"", b'{"a":' + b"[" * 100_000, "recursion limit"),
    ("huge number", {}, b"", b'{"a":' + b"1" * 100_000 + b"}", "number out of range"),
    ("not a number", {}, b"", b'{"a": NaN}', "invalid JSON"),
    ("a name of escapes", {"\x1b[0m\n": row(start=4, end=12)}, b"\0" * 12, b"", r"\\x1b\[0m\\n"),
    ("a name of kilobytes", {"a" * 5000: row(start=4, end=12)}, b"\0" * 12, b"", "a{150}"),
]


@pytest.mark.parametrize(
    ("rows", "body", "prefix", "words"),
    [c[1:] for c in BAD_HEADERS],
    ids=[c[0] for c in BAD_HEADERS],
)
def test_bad_header_is_one_line(
    tmp_path: Path, rows: dict[str, Row], body: bytes, prefix: bytes, words: str
) -> None:
    with pytest.raises(BadFile, match=words) as caught:
        safetensors_file.header(raw(tmp_path / "a.safetensors", rows, body, prefix))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_huge_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", safetensors_file.HEADER_MAX + 1) + b"{")
        file.truncate(safetensors_file.HEADER_MAX + 100)
    with pytest.raises(BadFile, match="at most"):
        safetensors_file.header(path)


def torch_file(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path)


def old_torch_file(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


def zip_bomb(path: Path) -> None:
    """20 MB of zeros in 20 kB, which must never be unpacked."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(20 * 2**20))


def holds(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


LOOKALIKES: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("zip", torch_file, "a.ckpt", "pickled.*convert it to safetensors"),
    ("old", old_torch_file, "a.pt", "pickled.*convert it to safetensors"),
    ("renamed pickle", torch_file, "a.safetensors", "pickled.*convert"),
    ("zip bomb", zip_bomb, "a.safetensors", "pickled.*convert"),
    ("empty zip", holds(b"PK\x05\x06" + bytes(18)), "a.safetensors", "pickled.*convert"),
    ("by name", holds(b"nonsense, but long enough"), "a.bin", "pickled"),
    ("lfs", holds(b"version https://git-lfs.github.com/spec/v1\noid"), "a.safetensors", "LFS"),
    ("html", holds(b"\n<!DOCTYPE html><html>"), "a.safetensors", "web page"),
    ("gguf", holds(b"GGUF\x03\0\0\0 and so on"), "a.gguf", "tensors; at most"),
    ("picture", holds(b"\x89PNG\r\n\x1a\n and so on"), "a.png", "picture"),
    ("text", holds("notes: café, \n".encode() * 9), "a.txt", "a text, not weights"),
    ("empty", holds(b""), "a.safetensors", "empty"),
    ("short", holds(b"\x01\x02"), "a.safetensors", "truncated"),
    ("cut in the header", holds(struct.pack("<Q", 900) + b'{"a"'), "a.safetensors", "truncated"),
]


@pytest.mark.parametrize(
    ("make", "name", "words"), [c[1:] for c in LOOKALIKES], ids=[c[0] for c in LOOKALIKES]
)
def test_lookalike_is_named_with_what_to_do(
    tmp_path: Path, make: Callable[[Path], object], name: str, words: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(BadFile, match=words) as caught:
        safetensors_file.header(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BadFile, match="regular"):
            safetensors_file.header(path)
    with pytest.raises(BadFile, match="no such file"):
        safetensors_file.header(tmp_path / "none.safetensors")


def shards(folder: Path, table: dict[str, object]) -> Path:
    save_file({"a": torch.ones(2)}, folder / "m-1.safetensors")
    save_file({"b": torch.zeros(3)}, folder / "m-2.safetensors")
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return index


def test_sharded_is_read_as_one(tmp_path: Path) -> None:
    index = shards(tmp_path, {"a": "m-1.safetensors", "b": "m-2.safetensors"})
    read = reading.read(safetensors_file.sharded(index).tensors, CPU, torch.float32)
    assert read["a"].tolist() == [1.0, 1.0]
    assert read["b"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"a": "../m-1.safetensors", "b": "m-2.safetensors"}, "plain name"),
        ({"a": "/etc/m-1.safetensors", "b": "m-2.safetensors"}, "plain name"),
        ({"a": "..\\m-1.safetensors"}, "plain name"),
        ({"a": ".."}, "plain name"),
        ({"a": 1}, "plain name"),
        ({}, "no weight_map"),
        ({"a": "m-3.safetensors"}, "no such file"),
        ({"a": "m-1.safetensors", "b": "m-1.safetensors"}, '"b" is not in'),
        ({"b": "m-2.safetensors", "a": "m-2.safetensors"}, '"a" is not in'),
    ],
)
def test_an_index_may_not_name_files_elsewhere(
    tmp_path: Path, table: dict[str, object], words: str
) -> None:
    with pytest.raises(BadFile, match=words):
        safetensors_file.sharded(shards(tmp_path, table))


def test_tensor_that_the_index_does_not_know_is_refused(tmp_path: Path) -> None:
    index = shards(tmp_path, {"a": "m-1.safetensors"})
    save_file({"a": torch.ones(2), "c": torch.ones(2)}, tmp_path / "m-1.safetensors")
    with pytest.raises(MissingWeights, match='"c" is not in the index'):
        safetensors_file.sharded(index)


def test_json_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, words in (
        (b"[]", "not a JSON object"),
        (b"{", "broken"),
        (b'{"a":1,"a":1}', "twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadFile, match=words):
            files.read_json(path)


def test_write_is_read_back_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    value = torch.randn(4, 3)
    safetensors_file.write({"a": value.T, "b": torch.ones(1).bfloat16()}, path, {"step": "7"})
    assert torch.equal(load_file(path)["a"], value.T)
    assert safetensors_file.header(path).metadata == {"step": "7"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors_file.write({"a": torch.ones(2)}, path, {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadOutput, match="No space left"):
        safetensors_file.write({"a": torch.zeros(2)}, path, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_sha256_is_cached_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = sha256(path)
    assert first == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    (kept,) = (tmp_path / "cache" / "txt2img" / "sha256").iterdir()
    kept.write_text("0" * 64)
    assert sha256(path) == "0" * 64
    path.write_bytes(b"three")
    assert sha256(path) not in (first, "0" * 64)


def test_sha256_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"one")
    assert sha256(tmp_path / "a").startswith("7692c3ad")
