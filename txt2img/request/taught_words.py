"""Words that a model was taught, and those of a prompt that it was not, with the nearest it knows.

A model's folder may hold them in `words.json`: "words" maps each word to the things that it names,
"ignored" lists words taught to mean nothing, "near" maps other words to the things nearest to them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path

from txt2img.errors import BadFile
from txt2img.request.compat import rules
from txt2img.request.prompt_syntax import schedule, spans
from txt2img.request.request import Request
from txt2img.system.files import read_json
from txt2img.system.text import escape, shown

FILE = "words.json"
WORDS_SHOWN = 6  # in a warning
NEAR_SHOWN = 3  # for a word
PART_MIN = 4  # letters of a taught word within another: "lighthouse" has "house"
WORD_CACHE = 2**12  # words whose nearest ones are remembered
SPELLING = 0.8  # how alike two spellings are, 0 to 1
# Words without meaning of their own, about which no warning helps.
_FUNCTION_WORDS = """
    a about across all along an and any are around as at be behind being below
    beside between but by for from has have her his i in inside into is it its made
    me my near of off on onto or out outside over please some that the their there
    this through to under up very was we while who with within without you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_OPERATOR = re.compile(r"\b(?:BREAK|AND)\b")
_IRREGULAR = (
    *(("children", "child"), ("feet", "foot"), ("geese", "goose"), ("leaves", "leaf")),
    *(("knives", "knife"), ("men", "man"), ("mice", "mouse"), ("people", "person")),
    *(("teeth", "tooth"), ("wolves", "wolf"), ("women", "woman")),
)


@dataclass(frozen=True)
class TaughtWords:
    """The table of a model's words."""

    words: Mapping[str, Sequence[str]]  # → the things that a word names; none for "on", "blue"
    ignored: frozenset[str] = frozenset()
    near: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def things(self) -> list[str]:
        """All things that any word names."""
        return sorted({thing for things in self.words.values() for thing in things})

    @property
    def others(self) -> list[str]:
        """The words that are no things: styles, colours, numbers, places; without plurals."""
        named = {word for thing in self.things for word in words_in(thing)}
        return [
            word
            for word in sorted(self.words)
            if word not in named
            and word not in FUNCTION_WORDS
            and (not self.things or not self.words[word])
            and not any(form in self.words for form in forms_of(word) if len(form) < len(word))
        ]

    def knows(self, word: str) -> bool:
        """Whether a word was taught, or says nothing."""
        plain = word.isdigit() or word in FUNCTION_WORDS
        return plain or word in self.words or word in self.ignored

    def untaught(self, request: Request) -> list[str]:
        """The words of a filled request's prompt that were never taught, each once, in order."""
        learnt = {word for one in request.embeddings for word in words_in(one.token)}
        words = dict.fromkeys(word for text in _texts(request) for word in words_in(text))
        return [word for word in words if not self.knows(word) and word not in learnt]

    def names_a_thing(self, request: Request) -> bool:
        """Whether any word of a prompt names a thing; always true for tables without things."""
        words = {word for text in _texts(request) for word in words_in(text)} - FUNCTION_WORDS
        return any(self.words.get(word) for word in words) or not any(self.words.values())

    @cached_property
    def nearest(self) -> Callable[[str], list[str]]:
        """What is nearest to a word: another form, a synonym, what is spelt like it or in it.

        Comparing spellings takes 20 ms, so the answers are cached.
        """
        return lru_cache(maxsize=WORD_CACHE)(self._nearest)

    @cached_property
    def _named(self) -> list[str]:
        """The words that name things, or all if none does."""
        return [known for known, things in self.words.items() if things] or list(self.words)

    def _nearest(self, word: str) -> list[str]:
        if forms := [form for form in forms_of(word) if form in self.words]:
            return forms[:1]
        for form in (word, *forms_of(word)):
            if form in self.near:
                return list(self.near[form])[:NEAR_SHOWN]
        if alike := get_close_matches(word, self._named, n=1, cutoff=SPELLING):
            return alike
        inside = [one for one in self.things if len(one) >= PART_MIN and word.endswith(one)]
        return sorted(inside, key=len)[-1:]

    def search(self, query: str) -> dict[str, Sequence[str]]:
        """The words that a query means, then those that contain it, and the things they name."""
        text = query.lower().strip()
        whole = [word for word in words_in(text) if word in self.words]
        containing = [
            word
            for word, things in sorted(self.words.items())
            if word.startswith(text)
            or (len(text) >= PART_MIN and text in word)
            or (len(things) == 1 and text in things[0].split())
        ]
        return {word: self.words[word] for word in [*whole, *containing] if text}


def read_taught_words(folder: Path) -> TaughtWords | None:
    """The table in a model's folder; None if there is none. BadFile."""
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_json(path)
    words, near = (_lists(path, key, content.get(key, {})) for key in ("words", "near"))
    return TaughtWords(
        words, frozenset(_texts_of(path, "ignored", content.get("ignored", []))), near
    )


def warning(table: TaughtWords, request: Request, model: str, advice: Callable[[], str]) -> str:
    """What a model was never taught of a prompt, in one line; empty if it was taught all.

    `advice` says how to get a model that knows more; it is asked only if there is a need.
    """
    if not (untaught := table.untaught(request)):
        return ""
    described = ", ".join(describe(table, word) for word in untaught[:WORDS_SHOWN])
    hidden = len(untaught) - WORDS_SHOWN
    rest = f" and {hidden:,} more" if hidden > 0 else ""
    nothing = (
        "" if table.names_a_thing(request) else "; nothing in the prompt names a thing it knows"
    )
    name = "" if model == "default" else f" {escape(model)}"
    lists = f"txt2img models words{name} lists what it was"
    return f"prompt: the model was never taught {described}{rest}{nothing}; {lists}; {advice()}"


def describe(table: TaughtWords, word: str) -> str:
    """An untaught word, with what is nearest to it."""
    near = table.nearest(word)
    return shown(word) + (f" (nearest: {escape(', '.join(near))})" if near else "")


def words_in(text: str) -> list[str]:
    """The words of a text, in lower case, without possessives."""
    plain = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [word.partition("'")[0] for word in _WORD.findall(plain)]


def forms_of(word: str) -> Iterator[str]:
    """Singular and plural of a word, and the same for -ing and -ed; some do not exist."""
    for plural, single in _IRREGULAR:
        if word in (plural, single):
            yield single if word == plural else plural
    endings = (
        ("ies", "y"),
        ("es", ""),
        ("s", ""),
        ("ing", ""),
        ("ing", "e"),
        ("ed", ""),
        ("ed", "e"),
    )
    for ending, instead in endings:
        if word.endswith(ending) and len(word) > len(ending) + 2:
            yield word.removesuffix(ending) + instead
    yield from (f"{word}s", f"{word}es")
    if word.endswith("y"):
        yield f"{word[:-1]}ies"


def from_captions(captions: Iterable[str]) -> dict[str, object]:
    """The content of a words.json for captions of which only the words are known."""
    words = {word for caption in captions for word in words_in(caption)}
    return {"words": {word: [] for word in sorted(words)}, "ignored": []}


def _texts(request: Request) -> list[str]:
    """The texts that a prompt is at any step, without weights and operators."""
    program = rules(request)
    texts = [request.prompt]
    if program.prompt_editing:
        edited = schedule(request.prompt, request.steps or 1, program.strict_edits)
        texts = [text for _, text in edited]
    texts = [_OPERATOR.sub(" ", text) for text in dict.fromkeys(texts)]
    return [span.text for text in texts for span in spans(text, program.prompt.grammar)]


def _lists(path: Path, key: str, value: object) -> dict[str, list[str]]:
    if not isinstance(value, dict):
        raise BadFile(f'{path.name}: "{key}" must be an object of lists')
    return {word: _texts_of(path, word, texts) for word, texts in value.items()}


def _texts_of(path: Path, key: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadFile(f"{path.name}: {shown(key)} must be a list of words")
    return value
