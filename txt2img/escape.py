"""Text from outside, made safe to show: prompts, paths, tensor names, metadata."""

import unicodedata

_HOSTILE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # C0 and C1, bidi and invisible, unpaired, separators
_JOINERS = "\u200c\u200d"  # format characters that are parts of real words and emoji
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str, keep: str = "") -> str:
    r"""`text` with control, bidi and unpaired characters as \x.. or \u....: safe on a terminal."""
    if text.isprintable():  # most are, and none of what is escaped is
        return text
    return "".join(c if c in keep or not _hostile(c) else _escaped(c) for c in text)


def shown(value: object, limit: int = 60) -> str:
    """A value from outside, quoted for a message: escaped and cut to `limit` characters."""
    text = value if isinstance(value, str) else f"{value!r}"
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return f'"{escape(cut)}"' if isinstance(value, str) else escape(cut)


def _hostile(c: str) -> bool:
    return c < " " or (c > "~" and unicodedata.category(c) in _HOSTILE and c not in _JOINERS)


def _escaped(c: str) -> str:
    code = ord(c)
    if c in _SHORT:
        return _SHORT[c]
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )
