"""What a name that nothing has may have been meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like this one; empty if none is."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def nearest_or_all(name: str, known: Iterable[str]) -> str:
    """The same; all that are known if none is like it."""
    names = list(known)
    return nearest(name, names) or f"; known: {', '.join(names)}"
