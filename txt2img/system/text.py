"""Text for messages: escaped when it comes from outside, sizes with units, did-you-mean hints."""

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import PurePath

UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3))

_HOSTILE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # C0 and C1, bidi and invisible, unpaired, separators
_JOINERS = "\u200c\u200d"  # format characters that are parts of real words and emoji
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str, keep: str = "") -> str:
    r"""Escape control, bidi and unpaired characters as \x.. or \u...., safe on a terminal."""
    if text.isprintable():  # most are, and none of what is escaped is
        return text
    return "".join(c if c in keep or not _hostile(c) else _escaped(c) for c in text)


def shown(value: object, limit: int = 60) -> str:
    """Quote a value from outside for a message, escaped and cut to `limit` characters.

    Both ends are kept: paths differ in the last part.
    """
    if not isinstance(value, str | PurePath):
        return escape(_cut(_repr(value), limit))
    return f'"{escape(_cut(str(value), limit))}"'


def _cut(text: str, limit: int) -> str:
    end = limit * 2 // 3
    return text if len(text) <= limit else f"{text[: limit - end - 1]}…{text[-end:]}"


def _repr(value: object) -> str:
    try:
        return f"{value!r}"
    except ValueError:  # Python writes no decimal numbers of more than 4,300 digits
        return "a number of too many digits"
    except RecursionError:
        return "a value nested too deeply"


def _hostile(c: str) -> bool:
    return c < " " or (c > "~" and unicodedata.category(c) in _HOSTILE and c not in _JOINERS)


def _escaped(c: str) -> str:
    code = ord(c)
    if c in _SHORT:
        return _SHORT[c]
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def format_size(count: float) -> str:
    """A number of bytes with a unit, in powers of ten."""
    for unit, one in UNITS:
        if count >= one:
            return f"{count / one:.1f} {unit}" if count < 100 * one else f"{count / one:.0f} {unit}"
    return f"{count:.0f} bytes"


def parse_size(text: str) -> int:
    """The bytes of a size such as "6GB", "1.5 GiB", "500M". ValueError."""
    found = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*(?:([KMGT])(i?)B?|B?)", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError("it is no size")
    number, unit, binary = found.groups()
    power = " KMGT".index(unit.upper()) if unit else 0
    return int(float(number.replace(",", ".")) * (1024 if binary else 1000) ** power)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the most similar known name, in any case; empty if none is similar."""
    lower = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]}?" if near else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """A hint with the most similar known name, or with all of them."""
    names = list(known)
    return nearest(name, names) or f"; known: {', '.join(names)}"
