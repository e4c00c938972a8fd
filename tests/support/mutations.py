"""Seeded damage to small valid files: what a bad disk, a bad transfer or a bad person would do."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Header = dict[str, object]
BAD_NUMBERS = (
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    1.5,
    True,
    "4",
    None,
    [],
    {},
    [[1]],
    "\x1b[31m",
)
BAD_NAMES = (
    "",
    "a" * 5000,
    "\x1b]0;x\x07",
    "../../x",
    "a\nb",
    "model_ema.x",
    "\u202ex",
    "__metadata__",
)
BAD_TYPES = ("F32", "F16", "I64", "U8", "F8_E4M3", "BOOL", "F128", "", 7, None, ["F32"])
MAGIC = (
    b"PK\x03\x04",
    b"\x80\x04\x95",
    b"<!DOCTYPE html>",
    b"version https://git-lfs",
    b"GGUF",
    b"",
)


def split(path: Path) -> tuple[Header, bytes]:
    """A file's header and its tensors' bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: object, body: bytes) -> bytes:
    """A file of a header, which may be text already, and bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def of_bytes(path: Path, chance: random.Random) -> bytes:
    """The file cut, longer, with bytes of its beginning changed, or begun like another kind."""
    data = bytearray(path.read_bytes())
    kind = chance.randrange(5)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data))])
    if kind == 1:
        return bytes(data) + chance.randbytes(chance.choice([1, 8, 4096]))
    if kind == 2:
        data[:8] = chance.choice([0, 1, 2**24 + 1, 2**63, len(data)]).to_bytes(8, "little")
    elif kind == 3:
        magic = chance.choice(MAGIC)
        data[: len(magic)] = magic
    else:
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(min(len(data), 4000))] = chance.randrange(256)
    return bytes(data)


def of_header(path: Path, chance: random.Random) -> bytes:
    """The file with one thing wrong in its header."""
    header, body = split(path)
    name = chance.choice([key for key in header if key != "__metadata__"])
    row = header[name]
    assert isinstance(row, dict)
    first, last = row["data_offsets"]
    changes: list[Callable[[], object]] = [
        lambda: row.update(dtype=chance.choice(BAD_TYPES)),
        lambda: row.update(shape=chance.choice([*BAD_NUMBERS, [chance.choice(BAD_NUMBERS)]])),
        lambda: row.update(shape=[*row["shape"], chance.choice(BAD_NUMBERS)]),
        lambda: row.update(shape=[1] * 40),
        lambda: row.update(shape=[2**40, 2**40]),
        lambda: row.update(data_offsets=[last, first]),
        lambda: row.update(data_offsets=[first, chance.choice(BAD_NUMBERS)]),
        lambda: row.update(data_offsets=[max(first - 4, 0), max(last - 4, 0)]),
        lambda: row.update(data_offsets=[first, last, last]),
        lambda: row.pop(chance.choice(list(row))),
        lambda: row.update(more=1),
        lambda: header.update({name: chance.choice(BAD_NUMBERS)}),
        lambda: header.update({chance.choice(BAD_NAMES): header.pop(name)}),
        lambda: header.update({chance.choice(BAD_NAMES): dict(row)}),
        lambda: header.update(
            __metadata__=chance.choice([1, {"a": 1}, [], None, {"a": "\x1b[0m"}])
        ),
    ]
    deep = b'{"a":' * 100_000
    texts = [
        b"[]",
        b"{}",
        b"null",
        b"{" * 3,
        deep,
        b'{"a": NaN}',
        b"\xff\xfe{}",
        b'{"x": 1' + b"0" * 9000,
    ]
    pick = chance.randrange(len(changes) + 2)
    if pick >= len(changes):
        return join(chance.choice(texts), body)
    changes[pick]()
    return join(header, body)


def of_tensors(path: Path, chance: random.Random) -> bytes:
    """A valid file whose tensors are not what they should be."""
    state = load_file(path)
    name = chance.choice(list(state))
    value = state[name]
    spoilt = value.float().flatten().clone()
    if len(spoilt):
        spoilt[chance.randrange(len(spoilt))] = chance.choice([float("nan"), float("inf"), 3e38])
    changes: list[Callable[[], Tensor]] = [
        lambda: spoilt.reshape(value.shape),
        lambda: value.flatten(),
        lambda: value[None],
        lambda: value[:0] if value.ndim else value,
        lambda: value[: max(1, len(value) // 2)] if value.ndim else value[None],
        lambda: torch.cat([value, value]) if value.ndim else value,
        lambda: value.transpose(0, -1) if value.ndim else value,
        lambda: value.long(),
        lambda: value.to(torch.float8_e4m3fn),
        lambda: value.double(),
        lambda: torch.zeros(()),
    ]
    pick = chance.randrange(len(changes) + 3)
    if pick < len(changes):
        state[name] = changes[pick]()
    elif pick == len(changes):
        del state[name]
    elif pick == len(changes) + 1:
        state[chance.choice(BAD_NAMES[1:7])] = value.clone()
    else:
        state[f"{name}.{chance.choice(['weight', 'alpha', 'x'])}"] = torch.ones(2)
    target = path.with_name("mutant.tmp")
    save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, target)
    data = target.read_bytes()
    target.unlink()
    return data


def of_json(path: Path, chance: random.Random) -> bytes:
    """A JSON file with one value changed, missing or too many; or no JSON at all."""
    values = json.loads(path.read_text())
    if chance.random() < 0.2:
        texts = [b"", b"[1]", b"{", b"\x00\xff", b'{"a":' * 100_000, b'"x"', b"9" * 5000]
        return chance.choice(texts)
    key = chance.choice(list(values) or ["x"])
    bad: list[object] = [
        *BAD_NUMBERS,
        "x" * 5000,
        [0, 0],
        [10**9] * 4,
        {"a": [None]},
        "../x",
        4096,
        3,
    ]
    if isinstance(values.get(key), list) and values[key] and chance.random() < 0.5:
        values[key][chance.randrange(len(values[key]))] = chance.choice(bad)
    elif chance.random() < 0.15:
        values.pop(key, None)
    else:
        values[key] = chance.choice(bad)
    return json.dumps(values).encode()


def of_text(path: Path, chance: random.Random) -> bytes:
    """A text file cut, emptied, with lines lost, doubled, exchanged, or of other characters."""
    data = path.read_bytes()
    lines = data.split(b"\n")
    place, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    odd = [b"\xff\xfe", b"\0", b"a" * 5000, b"\x1b[31m", "\u202e".encode(), b"a b c", b" ", b"#"]
    kind = chance.randrange(6)
    if kind == 0:
        return data[: chance.randrange(len(data) + 1)]
    if kind == 1:
        return chance.choice([b"", b"\n", b"#version: 0.2\n", b"\xff", bytes(100)])
    if kind == 2:
        del lines[place]
    elif kind == 3:
        lines.insert(place, lines[other])
    elif kind == 4:
        lines[place], lines[other] = lines[other], lines[place]
    else:
        lines[place] = chance.choice(odd)
    return b"\n".join(lines)


def of_value(value: object, chance: random.Random) -> object:
    """A JSON value with one of the values in it changed, at any depth: what a server may answer."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: of_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], of_value(value[place], chance), *value[place + 1 :]]
    names = ["../x", "a/../../b", "x" * 5000, "\x1b[31m", "/etc/x", "\ud800"]
    return chance.choice([*BAD_NUMBERS, *names])


def of_toml(path: Path, chance: random.Random) -> bytes:
    """A TOML file damaged as a text is, or with values that no option takes."""
    if chance.random() < 0.5:
        return of_text(path, chance)
    values = ["0x" + "f" * 5000, "inf", "nan", "[[1]]", "{a = 1}", "1979-05-27", '"\\u0000"', "-1"]
    lines = path.read_text().splitlines()
    place = chance.choice([n for n, line in enumerate(lines) if "=" in line])
    lines[place] = f"{lines[place].split('=')[0]}= {chance.choice(values)}"
    return "\n".join(lines).encode()


OF_WEIGHTS = (of_bytes, of_header, of_tensors, of_tensors)


def mutant(path: Path, seed: int) -> bytes:
    """The content that a seed makes of a file."""
    chance = random.Random(seed)
    if path.suffix == ".json":
        return of_json(path, chance)
    if path.suffix == ".toml":
        return of_toml(path, chance)
    if path.suffix == ".txt":
        return of_text(path, chance)
    return chance.choice(OF_WEIGHTS)(path, chance)
