"""Parameter sweeps: cfg=4..10:1.5 and sampler=euler,heun, as a grid or in step."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import product

from txt2img.errors import BadRequest
from txt2img.request.adapters import parse_lora, sparse_json
from txt2img.request.control import CONTROL_PARTS
from txt2img.request.fields import FIELDS
from txt2img.request.prompt_line import LISTED, LONG, OPTIONS, PATHS, TEXTS, as_number
from txt2img.request.request import Request
from txt2img.system.text import nearest_or_all, shown

PICTURES_MAX = 10_000
LORAS, NONE = "loras", "none"  # the one field whose values are added, and the value that adds none
COLUMNS_MAX = 10  # of the contact sheet of a sweep in step
_RANGE = re.compile(r"([^.,:|]+(?:\.\d+)?)\.\.([^:,|]+)(?::([^:,|]+))?")


@dataclass(frozen=True)
class Axis:
    """A field and its values."""

    field: str
    values: tuple[str | int | float, ...]


class Sweep:
    """Each request with every point of the sweep; can be iterated repeatedly."""

    def __init__(
        self,
        requests: Iterable[Request],
        texts: Sequence[str],
        in_step: bool = False,
        listed: Callable[[str], Sequence[str]] = lambda path: [path],
    ) -> None:
        """`in_step` pairs the axes' first values, then their second, … BadRequest.

        `listed` gives the pictures of a folder's path, or the path itself.
        """
        self.requests, self.in_step = requests, in_step
        self.axes = tuple(_with_listed(axis(text), listed) for text in texts)
        fields = [axis.field for axis in self.axes]
        if len(set(fields)) < len(fields):
            raise BadRequest("two sweeps over one option; list all its values in one")
        lengths = [len(axis.values) for axis in self.axes]
        if in_step and len(set(lengths)) > 1:
            counts = ", ".join(f"{axis.field} {len(axis.values)}" for axis in self.axes)
            raise BadRequest(f"--sweep-zip needs equally many values; got {counts}")
        values = [axis.values for axis in self.axes]
        # The first axis runs along the rows of the sheet, so it varies fastest.
        points = list(zip(*values, strict=True)) if in_step else list(product(*reversed(values)))
        if len(points) > PICTURES_MAX:
            raise BadRequest(f"a sweep of {len(points):,} pictures; at most {PICTURES_MAX:,}")
        names = fields if in_step else fields[::-1]
        self.points = [dict(zip(names, point, strict=True)) for point in points]
        self.columns = min(len(points), COLUMNS_MAX) if in_step else lengths[0]

    def __iter__(self) -> Iterator[Request]:
        """Every request with every point. BadRequest."""
        for request in self.requests:
            for point in self.points:
                values = {f: v for f, v in point.items() if f not in (LORAS, *CONTROL_PARTS)}
                one = with_lora(request.with_json(values), str(point.get(LORAS, NONE)))
                for name in CONTROL_PARTS & point.keys():
                    one = with_control_part(one, name, point[name])
                yield one


def _with_listed(axis: Axis, listed: Callable[[str], Sequence[str]]) -> Axis:
    """An axis of pictures with those of its folders in their places."""
    if axis.field not in PATHS:
        return axis
    return replace(axis, values=tuple(path for one in axis.values for path in listed(str(one))))


def with_lora(request: Request, text: str) -> Request:
    """The request with the LoRA NAME[:W[:TE]], in place of the same LoRA at another strength."""
    if text == NONE:
        return request
    lora = parse_lora(text)
    others = tuple(one for one in request.loras if one.name != lora.name)
    return replace(request, loras=(*others, lora))


def with_control_part(request: Request, name: str, value: object) -> Request:
    """The request with another weight or interval of its controls. BadRequest."""
    field, part = CONTROL_PARTS[name]
    if not getattr(request, field):
        option = FIELDS[field].flags[0]
        raise BadRequest(f"--sweep {name.replace('_', '-')} needs {option}")
    objects = [{**sparse_json(one), part: value} for one in getattr(request, field)]
    return request.with_json({field: objects})


def axis(text: str) -> Axis:
    """Parse `cfg=4..10:1.5`. BadRequest."""
    name, equals, listed = text.partition("=")
    option = "--" + re.sub(r"[\s_]+", "-", name.strip().lower().lstrip("-"))
    field = OPTIONS.get(option, "")
    if not equals:
        raise BadRequest(f"--sweep {shown(text)}; say OPTION=VALUES, as cfg=1..5:0.5")
    if option == "--lora":
        return Axis(LORAS, tuple(_loras(text, listed)))
    of_controls = {f"--{part.replace('_', '-')}": part for part in CONTROL_PARTS}
    field = of_controls.get(option, field)
    if not field or field in ("count", "times"):
        options = [option for option in (*LONG, *of_controls) if option != "--count"]
        known = ["prompt", "lora", *(option[2:] for option in options)]
        hint = nearest_or_all(option[2:], known)
        raise BadRequest(f"--sweep cannot vary {shown(name.strip())}{hint}")
    is_text = field in (*TEXTS, *PATHS, *LISTED, "control_interval", "ip_adapter_interval")
    if not is_text and (match := _RANGE.fullmatch(listed.strip())):
        return Axis(field, tuple(_range(text, *match.groups())))
    parts = _parts(listed)
    if not all(parts) and field not in TEXTS:
        raise BadRequest(f"--sweep {shown(text)} has an empty value")
    values = tuple(part if is_text else as_number(part) for part in parts)
    for value in values if field not in CONTROL_PARTS else ():
        Request.from_json({"prompt": "", field: value})
    return Axis(field, values)


def _parts(listed: str) -> list[str]:
    """Values separated by bars where there are any, else by commas."""
    return [part.strip() for part in listed.split("|" if "|" in listed else ",")]


def _loras(text: str, listed: str) -> Iterator[str]:
    """Parse `style:0.4,ink,none`, or `style:0.2..1:0.2`, as NAME:W. BadRequest."""
    name, _, weights = listed.strip().partition(":")
    if match := _RANGE.fullmatch(weights):
        parts = [f"{name}:{value}" for value in _range(text, *match.groups())]
    else:
        parts = _parts(listed)
    for part in parts:
        with_lora(Request(""), part)
        yield part


def _range(text: str, first: str, last: str, step: str | None) -> Iterator[int | float]:
    """first, first + step, … up to last, in decimal: no 0.30000000000000004. BadRequest."""
    try:
        start, end, by = Decimal(first), Decimal(last), Decimal(step or "1")
    except InvalidOperation:
        raise BadRequest(f"--sweep {shown(text)}: a range is like 4..10:1.5") from None
    if not (start.is_finite() and end.is_finite() and by.is_finite()) or by == 0:
        raise BadRequest(f"--sweep {shown(text)}: the step must be a number other than 0")
    count = (end - start) / by + 1
    if not 1 <= count <= PICTURES_MAX:
        way = "leads nowhere" if count < 1 else f"has more than {PICTURES_MAX:,} values"
        raise BadRequest(f"--sweep {shown(text)}: the range {way}")
    for i in range(int(count)):
        value = start + i * by
        yield int(value) if value == int(value) else float(value)
