"""Wildcards in prompts: {red|blue}, and __colour__ for a line of the file colour.txt.

Choices depend only on the picture's seed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from hashlib import sha256
from itertools import accumulate, chain, islice, permutations, product
from math import perm
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.request import template
from txt2img.request.request import PROMPT_MAX, Request
from txt2img.request.template import DEPTH_MAX, Choice, ListName, Option, Text
from txt2img.system.files import cannot_read, read_bounded, walk
from txt2img.system.text import shown

TEMPLATE_MAX = 16_384  # characters
FILE_MAX = 2**24  # bytes
FILES_MAX = 10_000  # that are looked through for a name
CHOICES_MAX = 10_000  # in one prompt
REDRAWS_MAX = 20  # where several choices came out equal
COMBINATIONS_MAX = 10_000  # of a prompt's choices, if all are wanted


@dataclass
class _Draws:
    """Pseudo-random numbers; the same for a key and seed in every version of Python."""

    key: str
    seed: int
    count: int = 0

    def next(self) -> int:
        """The next number below 2^64. BadRequest after too many."""
        if self.count >= CHOICES_MAX:
            raise BadRequest(f"a prompt of more than {CHOICES_MAX:,} choices")
        digest = sha256(f"{self.key} {self.seed} {self.count}".encode()).digest()
        self.count += 1
        return int.from_bytes(digest[:8], "big")

    def index(self, options: list[Option]) -> int:
        """The index of an option, drawn by the options' weights."""
        draw = self.next()
        if all(option.weight == 1 for option in options):
            return draw % len(options)
        limits = list(accumulate(option.weight for option in options))
        place = (draw >> 11) / 2**53 * limits[-1]
        return next(i for i, limit in enumerate(limits) if place < limit or limit == limits[-1])


class Wildcards:
    """A folder of lists that fill in prompts."""

    def __init__(self, folder: Path) -> None:
        """Lists are read when a prompt first names them. BadRequest if there is no such folder."""
        if not folder.is_dir():
            raise BadRequest(f"--wildcards {shown(folder)} is no folder; name one with lists")
        self.folder = folder
        self.lists: dict[str, list[Option]] = {}

    def resolve(self, request: Request) -> Request:
        """The request with choices made by its seed, and its templates recorded.

        BadRequest for a name without a list and for unbalanced braces; BadFile.
        """
        prompt, template = self._filled(request.template or request.prompt, request, "prompt")
        negative = request.negative_template or request.negative
        negative, negative_template = self._filled(negative, request, "negative")
        return replace(
            request,
            prompt=prompt,
            negative=negative,
            template=template,
            negative_template=negative_template,
        )

    def combinations(self, request: Request) -> list[Request]:
        """The request with each combination of choices, in order, whatever the seed.

        BadRequest as `resolve`, and for too many.
        """
        prompt = request.template or request.prompt
        negative = request.negative_template or request.negative
        prompts, negatives = self._every_text(prompt), self._every_text(negative)
        _check_count(len(prompts) * len(negatives))
        return [
            replace(
                request,
                prompt=one,
                negative=other,
                template=prompt if one != prompt else "",
                negative_template=negative if other != negative else "",
            )
            for one, other in product(prompts, negatives)
        ]

    def _every_text(self, text: str) -> list[str]:
        if not template.has_syntax(text):
            return [text]
        if len(text) > TEMPLATE_MAX:
            raise BadRequest(
                f"a prompt of {len(text):,} characters; with wildcards {TEMPLATE_MAX:,} are allowed"
            )
        return list(dict.fromkeys(one.strip() for one in self._every(template.parse(text), 0)))

    def _every(self, text: Text, depth: int) -> list[str]:
        """All texts that a template can become."""
        if depth > DEPTH_MAX:
            raise BadRequest(f"wildcards within wildcards, more than {DEPTH_MAX} deep")
        texts = [""]
        for part in text:
            choices = [part] if isinstance(part, str) else self._every_choice(part, depth + 1)
            _check_count(len(texts) * len(choices))
            texts = [before + choice for before in texts for choice in choices]
            if any(len(text) > PROMPT_MAX for text in texts):
                raise BadRequest(f"the wildcards give more than {PROMPT_MAX:,} characters")
        return list(dict.fromkeys(texts))

    def _every_choice(self, part: ListName | Choice, depth: int) -> list[str]:
        """All that a list's name or braces can become: several options in any order."""
        if isinstance(part, ListName):
            part = Choice(tuple(self._list(part.name)))
        name = part.only_name()
        options = self._list(name) if name else list(part.options)
        texts = [self._every(option.text, depth) for option in options if option.weight]
        least = min(part.least, len(texts))
        most = len(texts) if part.most is None else min(part.most, len(texts))
        _check_count(sum(perm(len(texts), number) for number in range(least, most + 1)))
        found: dict[str, None] = {}
        for number in range(least, most + 1):
            for chosen in permutations(texts, number):
                for words in product(*chosen):
                    if len(set(words)) == number:
                        found[part.joiner.join(words)] = None
                    _check_count(len(found))
        return list(found)

    def _filled(self, text: str, request: Request, which: str) -> tuple[str, str]:
        """A text with its choices made, and its template, empty if it had no choices."""
        if not template.has_syntax(text):
            return text, ""
        if len(text) > TEMPLATE_MAX:
            raise BadRequest(
                f"{which} has {len(text):,} characters; with wildcards {TEMPLATE_MAX:,} are allowed"
            )
        pieces: list[str] = []
        self._fill(template.parse(text), _Draws(which, request.seed or 0), pieces, 0)
        filled = "".join(pieces).strip()
        return filled, text if filled != text else ""

    def _fill(self, text: Text, draws: _Draws, pieces: list[str], depth: int) -> None:
        """Append a text's pieces, making its choices in order."""
        if depth > DEPTH_MAX:
            raise BadRequest(f"wildcards within wildcards, more than {DEPTH_MAX} deep")
        for part in text:
            if isinstance(part, str):
                pieces.append(part)
            else:
                self._choose(part, draws, pieces, depth + 1)
            if len(pieces) > PROMPT_MAX:
                raise BadRequest(f"the wildcards give more than {PROMPT_MAX:,} characters")

    def _choose(
        self, part: ListName | Choice, draws: _Draws, pieces: list[str], depth: int
    ) -> None:
        """Append the pieces of what is chosen for a list's name or for braces."""
        if isinstance(part, ListName):
            part = Choice(tuple(self._list(part.name)), cyclic=part.cyclic)
            options = list(part.options)
        elif name := part.only_name():  # {2$$__colour__}: two of the list's lines
            options = self._list(name)
        else:
            options = list(part.options)
        least = min(part.least, len(options))
        most = len(options) if part.most is None else min(part.most, len(options))
        number = least if least == most else least + draws.next() % (most - least + 1)
        if number == 1:
            index = draws.seed % len(options) if part.cyclic else draws.index(options)
            self._fill(options[index].text, draws, pieces, depth)
        else:
            pieces.append(part.joiner.join(self._several(part, options, number, draws, depth)))

    def _several(
        self, part: Choice, options: list[Option], number: int, draws: _Draws, depth: int
    ) -> list[str]:
        """The texts of several different options, in the order in which they are drawn."""
        texts: list[str] = []
        rest = [option for option in options if option.weight]
        while rest and len(texts) < number:
            first = part.cyclic and not texts
            option = rest.pop(draws.seed % len(rest) if first else draws.index(rest))
            for _ in range(REDRAWS_MAX):
                pieces: list[str] = []
                self._fill(option.text, draws, pieces, depth)
                if (chosen := "".join(pieces)) not in texts:
                    break
            texts.append(chosen)
        return texts

    def _list(self, name: str) -> list[Option]:
        """The lines of a list, or of all lists that a pattern matches. BadRequest, BadFile."""
        if name not in self.lists:
            known = self._known() if any(sign in name for sign in "*?") else [name]
            names = sorted(one for one in known if fnmatchcase(one, name))
            paths = [path for one in names if (path := self.folder / f"{one}.txt").exists()]
            if not paths:
                raise BadRequest(self._unknown(name))
            self.lists[name] = [line for path in paths for line in self._read(path)]
        if not any(line.weight for line in self.lists[name]):
            raise BadRequest(f"the list {shown(name)} of the wildcards is empty")
        return self.lists[name]

    def _read(self, path: Path) -> Iterator[Option]:
        """The lines of a file but blank ones and comments. BadRequest, BadFile."""
        content = read_bounded(path, FILE_MAX)
        try:
            lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise BadFile(f"{shown(path)} is not UTF-8 text; save it as UTF-8") from error
        for number, line in enumerate(lines, 1):
            if not line or line[0] == "#":
                continue
            try:
                yield template.parse_line(line)
            except BadRequest as error:
                raise BadRequest(f"{shown(path)} line {number}: {error}") from error

    def _unknown(self, name: str) -> str:
        known = self._known()
        near = [one for one in known if one.endswith(f"/{name}")]
        near = near or get_close_matches(name, known, n=1)
        hint = f"; did you mean __{near[0]}__?" if near else f" in {shown(self.folder)}"
        return f"no list {shown(name)} for __{name}__{hint}"

    def _known(self) -> list[str]:
        """The names of the lists in the folder."""
        unreadable: list[OSError] = []
        below = ([at / name for name in names] for at, _, names in walk(self.folder, unreadable))
        paths = (path for path in chain.from_iterable(below) if path.suffix == ".txt")
        known = [path.relative_to(self.folder).with_suffix("") for path in islice(paths, FILES_MAX)]
        if unreadable:
            raise BadFile(f"--wildcards: {cannot_read(unreadable)[0]}")
        return [path.as_posix() for path in known]


def _check_count(count: int) -> None:
    """Raise BadRequest for more combinations than are drawn."""
    if count > COMBINATIONS_MAX:
        raise BadRequest(
            f"--all: {count:,} combinations or more; at most {COMBINATIONS_MAX:,}: leave out some, "
            "or draw a --count of them without --all"
        )
