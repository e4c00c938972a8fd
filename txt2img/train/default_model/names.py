"""Names of things: the table of icons, their names, and the words for kinds of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from txt2img.errors import BadFile, BadRequest

LINE = re.compile(r"([\w-]+)(?:: ([^,;:]+(?:, [^,;:]+)*)(?:; ([^,;:]+(?:, [^,;:]+)*))?)?")


@dataclass(frozen=True)
class Names:
    """A thing's names, the most usual first, and words for kinds of it ("kitten" for a cat)."""

    name: str
    others: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every word that asks for the thing, the usual name first."""
        return (self.name, *self.others, *self.kinds)

    @property
    def weights(self) -> tuple[float, ...]:
        """The frequency of each name of `all` in captions."""
        others = [max(3.0 / len(self.others), 0.7) for _ in self.others]
        return (6.0, *others, *(2.0 / len(self.kinds) for _ in self.kinds))


def read_names(path: Path) -> dict[str, Names]:
    """Read the table in a file, icon → names; without names an icon's own name counts.

    Lines that are empty or begin with # are skipped. Raises BadRequest for a file that cannot be
    read, BadFile for a line that cannot be understood or a name that two things have.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest(f"--concepts {path.name} cannot be read: {error}") from error
    table: dict[str, Names] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise BadFile(f"{path.name} line {number}: use 'icon: name, name; kind, kind'")
        stem, names, kinds = match.groups()
        first, *others = names.split(", ") if names else [stem.replace("-", " ")]
        table[stem] = Names(first, tuple(others), tuple(kinds.split(", ")) if kinds else ())
    for name, owners in owners_of(table).items():
        if len(owners) > 1:
            raise BadFile(f"{path.name}: {' and '.join(owners)} are both called '{name}'")
    return table


def owners_of(table: Mapping[str, Names]) -> dict[str, list[str]]:
    """Name → the keys of all things with that name."""
    owners: dict[str, list[str]] = {}
    for key, names in table.items():
        for name in names.all:
            owners.setdefault(name, []).append(key)
    return owners


def things_by_word(names: Iterable[Names]) -> dict[str, list[str]]:
    """Each word of any name → the usual names of the things whose names contain it.

    A word that is a thing's whole name leads to that thing first.
    """
    words: dict[str, dict[str, bool]] = {}
    for thing in names:
        for name in thing.all:
            for word in name.split():
                whole = words.setdefault(word, {})
                whole[thing.name] = whole.get(thing.name, False) or word == name
    # False comes before True: things of which the word is the whole name
    return {
        word: [thing for _, thing in sorted((not whole, thing) for thing, whole in things.items())]
        for word, things in sorted(words.items())
    }


def nouns_covered(nouns: Sequence[str], words: Mapping[str, Sequence[str]]) -> float:
    """The share of nouns that were taught, 0 to 1."""
    return round(sum(noun in words for noun in nouns) / max(len(nouns), 1), 4)
