"""One line of a prompt file → a Request: options of several programs, a JSON object, a CSV row."""

import re
from collections.abc import Mapping, MutableMapping, Sequence

from txt2img.errors import BadRequest
from txt2img.request.a1111_api import from_api
from txt2img.request.fields import FIELDS
from txt2img.request.input_image import ImageRef
from txt2img.request.request import Request
from txt2img.request.sampler_names import split_sampler
from txt2img.system.files import parse_json
from txt2img.system.text import nearest_or_all, shown

# Ours; and those of A1111's "prompts from file" and kohya's gen_img, whose underscores are read as
# hyphens.
OURS = {
    flag: name
    for name, field in FIELDS.items()
    if (field.scalar or field.listed) and not field.same_for_all
    for flag in field.flags
}
THEIRS = {alias: name for name, field in FIELDS.items() for alias in field.aliases}
OPTIONS = OURS | THEIRS | {"--batch-size": "times"}
LONG = [option for option in OURS if option.startswith("--")]
# A1111's options that ask for nothing here: always, or with these values.
NO_EFFECT: Mapping[str, tuple[str, ...]] = {
    "--restore-faces": ("false",),
    "--do-not-save-samples": ("false",),
    "--seed-resize-from-h": ("0", "-1"),
    "--seed-resize-from-w": ("0", "-1"),
    "--do-not-save-grid": (),
    "--prompt-for-display": (),
    "--outpath-samples": (),
    "--outpath-grids": (),
}
SHORT_MAX = 5  # characters of other programs' short options, as --am
TEXTS = ("prompt", "negative")
PATHS = tuple(name for name, field in FIELDS.items() if field.kind is ImageRef)
LISTED = tuple(name for name, field in FIELDS.items() if field.listed)
# Options whose value may be left out, and what it is then.
LEFT_OUT = {"mask_invert": True, "only_masked": 32, "transparent": "model"}
Values = dict[str, object]

# An option where a word begins. Other short words with a hyphen are part of the prompt.
_OPTION = re.compile(r"(?:^|(?<=\s))(--[A-Za-z][\w-]*|-[nWHi](?=\s))[=\s]?")
_QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')(?=\s|$)""")


def from_line(line: str, base: Request, skipped: list[str] | None = None) -> Request:
    """The request of `a prompt --seed 7 --cfg 5`. BadRequest for an unknown or bad option.

    Options that were skipped, since they ask for nothing, are appended to `skipped`.
    """
    quoted = _QUOTED.match(line)
    first = _OPTION.search(line, quoted.end() if quoted else 0)
    end = first.start() if first else len(line)
    values: Values = {"prompt": _unquoted(line[:end].strip())}
    while end < len(line):
        option = _OPTION.match(line, end)
        assert option is not None
        text, end = _value(line, option.end())
        name = option[1] if option[1] in OURS else option[1].replace("_", "-")
        if name not in OPTIONS:
            name = name.lower()  # kohya's may be written in capitals
        if name in NO_EFFECT and text.lower() in (NO_EFFECT[name] or (text.lower(),)):
            if skipped is not None:
                skipped.append(option[1])
            continue
        if name not in OPTIONS:
            raise BadRequest(f"no option {shown(option[1])} for a line{_hint(name)}")
        field = OPTIONS[name]
        if field == "prompt" and values["prompt"]:
            raise BadRequest("a prompt before the options and --prompt; give one of them")
        if not text and field not in (*TEXTS, *LEFT_OUT):
            raise BadRequest(f"{option[1]} needs a value")
        if field in LISTED:
            listed = values.setdefault(field, [])
            assert isinstance(listed, list)
            listed.append(_unquoted(text))
            continue
        values[field] = _cell(field, _unquoted(text))
        if not text and field in LEFT_OUT:
            values[field] = LEFT_OUT[field]
    return _request(values, base)


def _hint(name: str) -> str:
    """A hint for an unknown option; a short one is no misspelling of a long one."""
    if len(name) > SHORT_MAX:
        return nearest_or_all(name, LONG)
    return f"; known: {', '.join(LONG)}"


def from_json(
    line: str, base: Request, contents: MutableMapping[str, bytes] | None = None
) -> Request:
    """The request of `{"prompt": "a cat", "seed": 7}`, or of a call of A1111's API. BadRequest.

    Pictures inside the line become `contents`, by name.
    """
    try:
        values = parse_json(line)
    except ValueError as error:
        raise BadRequest(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadRequest("not a JSON object")
    return from_values(values, base, contents)


def from_values(
    values: Values, base: Request, contents: MutableMapping[str, bytes] | None = None
) -> Request:
    """The request of a JSON object's values, as `from_json`. BadRequest."""
    if "prompt" not in values:
        raise BadRequest('a request needs a "prompt"')
    if values.get("model", base.model) != base.model:
        raise BadRequest("one model draws all lines; choose it with --model")
    if not FIELDS.keys() >= values.keys() or not {*PATHS}.isdisjoint(values):
        return _request(from_api(values, OPTIONS, {} if contents is None else contents), base)
    if values.get("seed") == -1:  # random, as in a plain line
        values["seed"] = None
    return base.with_json(values)


def from_row(cells: Sequence[str], columns: Sequence[str], base: Request) -> Request:
    """The request of a CSV row under `columns`; blank cells are `base`'s."""
    if len(cells) > len(columns):
        raise BadRequest(
            f"{len(cells)} cells under {len(columns)} columns; put quotes around text with commas"
        )
    values: Values = {"prompt": ""}
    for field, cell in zip(columns, cells, strict=False):
        text = cell.strip()
        if text:
            values[field] = _cell(field, text)
    return _request(values, base)


def columns(names: Sequence[str]) -> list[str]:
    """The fields of a CSV header, in any program's spelling. BadRequest."""
    fields = []
    for name in names:
        option = "--" + re.sub(r"[\s_]+", "-", name.strip().lower())
        if option not in OPTIONS:
            known = ", ".join(["prompt", *(option[2:] for option in LONG)])
            raise BadRequest(f"no column {shown(name.strip())}; known: {known}")
        fields.append(OPTIONS[option])
    if "prompt" not in fields:
        raise BadRequest("no column is called prompt")
    if len(set(fields)) < len(fields):
        raise BadRequest("two columns are the same field")
    return fields


def _request(values: Values, base: Request) -> Request:
    """The request of values as other programs may have given them. BadRequest."""
    if values.get("seed") == -1:  # other programs' random seed
        values["seed"] = None
    if values.get("subseed") == -1 and not values.get("subseed_strength", base.subseed_strength):
        del values["subseed"]
    times = values.pop("times", 1)
    count = values.get("count", 1)
    if not isinstance(times, int) or times < 1:
        raise BadRequest(f"--batch-size must be a whole number from 1 up, got {shown(times)}")
    if times > 1:
        values["count"] = count * times if isinstance(count, int) else count
    sampler = values.get("sampler")
    if isinstance(sampler, str) and "schedule" not in values:
        name, schedule = split_sampler(sampler, None)
        values |= {"sampler": name} | ({"schedule": schedule} if schedule else {})
    return base.with_json(values)


def _value(line: str, start: int) -> tuple[str, int]:
    """An option's value, and where the next option begins, outside the value's quotes."""
    start += len(line[start:]) - len(line[start:].lstrip())
    quoted = _QUOTED.match(line, start)
    after = _OPTION.search(line, quoted.end() if quoted else start)
    end = after.start() if after else len(line)
    return line[start:end].strip(), end


def _cell(field: str, text: str) -> object:
    """A field's value in a cell; several of a list are separated by bars."""
    if field in LISTED:
        return [part.strip() for part in text.split("|")]
    return text if field in (*TEXTS, *PATHS) else as_number(text)


def _unquoted(text: str) -> str:
    """Text without quotes around all of it; apostrophes inside stay."""
    match = _QUOTED.fullmatch(text)
    if not match:
        return text
    return text[1:-1] if text[0] == "'" else re.sub(r"\\(.)", r"\1", text[1:-1])


def as_number(text: str) -> str | int | float:
    """The number in `text`, or the text itself, which the request's checks then refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
