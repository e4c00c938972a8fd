"""Prompt rewriting by a language model: what it is told, what it reads, what its answer becomes.

Syntax is no matter of the language model: weights, tags, choices and learnt words are taken out of
a prompt before it reads it and put back afterwards, and what it writes of its own has none.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from txt2img.errors import BadRequest, EnhanceFailed
from txt2img.request.adapters import find_words
from txt2img.system.text import escape, shown

TEMPERATURE = 0.7
TEMPERATURE_MAX = 2.0
ANSWER_MAX = 8_000  # characters
NAME_MAX = 255
KNOWN_MAX = 6_000  # characters of a list of words for a language model
STYLES = ("3d emoji", "flat emoji", "noto emoji", "twemoji")  # of the default model

_TASK = (
    "You rewrite prompts of a text-to-image model. Keep every thing, name, number, colour and "
    "style that the user names, and add nothing that contradicts them. "
)
_ONLY = (
    " Never say what is absent. Use no brackets, quotation marks, headings or lists. Answer with "
    "the rewritten prompt alone, on one line, without any comment."
)


@dataclass(frozen=True)
class Enhancer:
    """The language model that rewrote a prompt, as a record names it: no path, host or key."""

    model: str = ""  # a name, if one was given
    hash: str = ""  # ten digits, of a folder's weights
    instructions: str = ""  # hash (12 hex digits) of the system prompt
    seed: int = 0
    temperature: float = TEMPERATURE

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        if not isinstance(self.model, str) or escape(self.model[:NAME_MAX]) != self.model:
            raise BadRequest(f"enhancer: no name of a language model: {shown(self.model)}")
        for digits in (self.hash, self.instructions):
            if not isinstance(digits, str) or not re.fullmatch("[0-9a-f]{0,64}", digits):
                raise BadRequest(f"enhancer: no hash: {shown(digits)}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**64:
            raise BadRequest(f"enhancer: seed must be 0 … 2^64-1, got {shown(self.seed)}")
        check_temperature("enhancer: temperature", self.temperature)


@dataclass(frozen=True)
class Instructions:
    """A system prompt, and the most words that its answers may have (0: any number)."""

    text: str
    words: int = 0

    @property
    def hash(self) -> str:
        """Twelve hex digits that tell it from others."""
        return sha256(self.text.encode("utf-8", "replace")).hexdigest()[:12]


FOR_CLIP = Instructions(
    _TASK + "Write at most 60 English words as short phrases with commas between: first the "
    "subject, then what it looks like, what is around it, the light, the colours, the medium and "
    "the style." + _ONLY,
    60,
)
FOR_PROSE = Instructions(
    _TASK + "Write one paragraph of at most 150 words of plain English prose: the subject and what "
    "it does, what it looks like, where things are, the background, the light, the mood and the "
    "style." + _ONLY,
    150,
)


def for_taught_words(things: Sequence[str], words: Sequence[str]) -> Instructions:
    """Instructions for a model that knows few words: the things it draws, and the others."""
    styles = [style for style in STYLES if set(style.split()) <= {*words}]
    ending = f" End with one of these styles: {', '.join(styles)}." if styles else ""
    drawn = f" It draws these things: {_listed(things)}." if things else ""
    text = (
        f"You rewrite prompts of a small text-to-image model that knows few words.{drawn} Other "
        f"words it knows: {_listed(words)}. Name the one thing of these that is nearest to what "
        "the user asks for, with its colour, number, place or background if the user names one, "
        "and use no other words. Write at most 12 words with commas between, such as: red apple, "
        f"white background{', 3d emoji' if styles else ''}.{ending}{_ONLY}"
    )
    return Instructions(text, 24)


def _listed(words: Sequence[str]) -> str:
    text = ", ".join(words)
    return text if len(text) <= KNOWN_MAX else text[:KNOWN_MAX].rpartition(",")[0]


def check_temperature(name: str, value: object) -> None:
    """Raise BadRequest for a temperature out of range."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 <= value <= TEMPERATURE_MAX):  # type: ignore[operator]
        raise BadRequest(f"{name} must be 0 … {TEMPERATURE_MAX:g}, got {shown(value)}")


@dataclass(frozen=True)
class Piece:
    """Syntax that was taken out of a prompt, and the words that stood for it in the rest."""

    source: str
    words: str = ""  # none: they mean nothing to a language model
    leads: bool = False  # the prompt began with it


@dataclass(frozen=True)
class PlainPrompt:
    """A prompt without syntax, and what was taken out."""

    text: str
    pieces: tuple[Piece, ...] = ()
    rest: str = ""  # from the first BREAK or AND on

    def put_back(self, answer: str) -> str:
        """A rewritten prompt with what was taken out: in place of its words, or at the ends."""
        parts: list[str | Piece] = [answer]
        before, after = list[str](), list[str]()
        for piece in self.pieces:
            if not _substitute(parts, piece):
                (before if piece.leads else after).append(piece.source)
        middle = "".join(part if isinstance(part, str) else part.source for part in parts)
        return ", ".join(filter(None, [*before, middle, *after])) + self.rest


def _substitute(parts: list[str | Piece], piece: Piece) -> bool:
    """Put a piece in place of its words' first occurrence; False if there is none."""
    for place, part in enumerate(parts):
        if piece.words and isinstance(part, str):
            for start, end, _ in find_words([piece.words], part):
                parts[place : place + 1] = [part[:start], piece, part[end:]]
                return True
    return False


PIECES_MAX = 200
# (?<!\s)\s*+ instead of \s*: a hostile prompt must not cause backtracking.
_REST = re.compile(r"(?<!\s)\s*+(?:(?::\s*[+-]?[\d.]+\s*)?\bAND\b|\bBREAK\b).*", re.DOTALL)
_TAG = re.compile(r"<[a-z]+:[^<>]*>|(?<!\w)embedding:[^\s,:()]+", re.IGNORECASE)
_ESCAPED = re.compile(r"\\[(\[{]([^()\[\]{}\\]*)\\[)\]}]")
_LIST = re.compile(r"__([\w/*? -]{1,200}?)__")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_HEAD = re.compile(r"\s*[~@!]?\s*[\d-]*\$\$(?:[^${}]+\$\$)?|\s*[\d.]+\s*::")
_NUMBER = re.compile(r"\s*:\s*[+-]?[\d.]+\s*$")


def take_out(prompt: str, learnt: Iterable[str] = ()) -> PlainPrompt:
    """A prompt as a language model reads it; `learnt` are the words of embeddings."""
    rest = match[0] if (match := _REST.search(prompt)) else ""
    prompt = prompt.removesuffix(rest)
    ends = _brackets(prompt) | {start: end for start, end, _ in find_words(learnt, prompt)}
    text: list[str] = []
    pieces: list[Piece] = []
    at = 0
    while at < len(prompt):
        end, words = _syntax_at(prompt, at, ends)
        if end == at:  # plain, or brackets that are not closed
            text.append("" if prompt[at] in "()[]{}\\" else prompt[at])
            at += 1
            continue
        leads = not "".join(text[:PIECES_MAX]).strip(" ,")
        pieces.append(Piece(prompt[at:end], words, leads))
        text.append(words)
        at = end
    return PlainPrompt(_tidy("".join(text)), tuple(pieces), rest)


def _syntax_at(prompt: str, at: int, ends: dict[int, int]) -> tuple[int, str]:
    """Where the syntax at a place ends, and its words; where there is none it ends at once."""
    if match := _TAG.match(prompt, at):
        return match.end(), ""
    if match := _LIST.match(prompt, at):
        return match.end(), re.sub(r"[\W_]+", " ", match[1].rpartition("/")[2]).strip()
    if match := _ESCAPED.match(prompt, at):
        return match.end(), _tidy(match[1])
    end = ends.get(at, at)
    is_bracket = prompt[at] in _CLOSING
    return end, _words(prompt[at:end]) if is_bracket and end > at else ""


def _brackets(prompt: str) -> dict[int, int]:
    """The places of brackets that are closed, and those after the brackets that close them."""
    opened: dict[str, list[int]] = {sign: [] for sign in _CLOSING.values()}
    ends = {}
    for match in re.finditer(r"\\.|[()\[\]{}]", prompt, re.DOTALL):
        if match[0] in _CLOSING:
            opened[_CLOSING[match[0]]].append(match.start())
        elif places := opened.get(match[0]):
            ends[places.pop()] = match.end()
    return ends


def _words(source: str) -> str:
    """The words of what brackets hold: of choices the first, of edits the last."""
    inner = source[1:-1]
    if source[0] == "{":
        inner = _HEAD.sub("", inner, count=1).partition("|")[0]
        inner = _HEAD.sub("", inner, count=1)
    elif source[0] == "[" and "|" in inner:
        inner = inner.partition("|")[0]
    elif source[0] == "[" and ":" in inner:
        before, _, after = _NUMBER.sub("", inner).rpartition(":")
        inner = after or before
    inner = re.sub(r":\s*[+-]?[\d.]+\s*(?=[)\]]|\Z)", "", inner)
    return _tidy(re.sub(r"[()\[\]{}|\\]", " ", _TAG.sub(" ", inner)))


def _tidy(text: str) -> str:
    """A text with single spaces, without spaces before commas and commas at its ends."""
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"\s*,(?:\s*,)*", ",", text).strip(" ,")


_THOUGHTS_END = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHTS = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_WHAT = r"(?:prompt|description|caption|version|rewrite|result|output|answer)"
_LEAD = re.compile(
    r"(?:(?:sure|certainly|of course|okay|ok|absolutely|great|yes)\b[^\n:.!]*[.!,:]\s*)?"
    rf"(?:here(?:'s|\u2019s|\s+is|\s+are|\s+you go)\b[^\n:]*:|(?:[\w-]+\s+){{0,3}}{_WHAT}\s*:)\s*",
    re.IGNORECASE,
)
_LIKELY_LEAD = re.compile(r"(?:sure|certainly|of course|okay|absolutely)\b[^\n]*[!:.]", re.I)
_AFTERWORD = re.compile(
    r"(?:\W*(?:please )?note\b|let me know|feel free|i hope|this (?:prompt|version|rewrite)|"
    r"explanation|negative prompt|would you like|if you(?:'d| would) like)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"(?:(?:i['\u2019]?m|i am|we['\u2019]re)\s+(?:(?:very|really|so)\s+)?(?:sorry|unable|afraid)|"
    r"sorry\b|as an ai\b|(?:unfortunately,?\s+)?(?:i|we)\s+(?:can['\u2019]?t|cannot|can not|"
    r"won['\u2019]?t|will not|am unable|am not able|must decline|have to decline|apologi[sz]e)|"
    r"my apologies|i do not feel comfortable|i don['\u2019]t feel comfortable)",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "„": "“", "«": "»", "\u2018": "\u2019"}
_QUOTES |= {sign: sign for sign in "`*_"}
_BULLET = re.compile(r"\A(?:[-*>•]|#{1,6}|\d{1,2}[.)])\s+")
_OPTION = re.compile(r"(?<!\S)[-–—]{1,2}[A-Za-z][\w-]*(?:[ =][\w.:]+(?=[\s,]|$))?")  # --ar 16:9
_SYNTAX = re.compile(
    r":\s*[+-]?[\d.]+\s*(?=[)\]>])|[()\[\]{}<>|\\#`*]|__+|\$\$+|(?<!\S)(?://+|/\*)|embedding:",
    re.IGNORECASE,
)


def clean(answer: str, words: int = 0) -> str:
    """A prompt out of a language model's answer, of at most so many words. EnhanceFailed.

    Thoughts, fences, quotes, comments and line breaks go, and whatever has a meaning in prompts.
    """
    text = _THOUGHTS.split(_THOUGHTS_END.split(answer)[-1])[0]
    if len(text) > ANSWER_MAX:
        raise EnhanceFailed(f"its answer has {len(text):,} characters")
    if fence := _FENCE.search(text):
        text = fence[1]
    text = _unquoted(_from_json(text.strip()))
    if re.match(r"<(?:!doctype|html|\?xml)", text, re.IGNORECASE):
        raise EnhanceFailed("its answer is a page of HTML")
    lines = [*_prompt_lines(text)]
    if lines and _REFUSAL.match(lines[0]):
        raise EnhanceFailed(f"it refuses: {shown(lines[0], 100)}")
    text = _unquoted(" ".join(line if line[-1] in ",.;:!?" else f"{line}," for line in lines))
    text = "".join(c if escape(c) == c else " " for c in _unquoted(text.removesuffix(",")))
    text = _tidy(_SYNTAX.sub(" ", _OPTION.sub(" ", text)))
    text = re.sub(r"\b(?:AND|BREAK)\b", lambda word: word[0].lower(), text)
    text = _tidy(_NUMBER.sub("", re.sub(r"\s+([,.;:!?])", r"\1", text)))
    text = _shortened(text, words)
    if not any(c.isalnum() for c in text):
        raise EnhanceFailed("its answer is empty")
    return text


def _prompt_lines(text: str) -> Iterator[str]:
    """The lines of an answer that are the prompt: not what introduces it, or comes after it."""
    found = False
    for line in text.splitlines():
        line = _BULLET.sub("", line.strip(), count=1).strip()
        if not line:
            continue
        stripped = line.strip("*_ ")
        if not found and (lead := _LEAD.match(stripped)):
            line = stripped[lead.end() :].strip("*_ ")
        elif not found and _LIKELY_LEAD.fullmatch(stripped):
            continue
        elif found and _AFTERWORD.match(stripped):
            return
        if line:
            found = True
            yield line


def _from_json(text: str) -> str:
    """The prompt in an answer that is a JSON object, or the answer itself."""
    if not text.startswith("{"):
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    texts = [value for value in content.values() if isinstance(value, str)]
    return str(content.get("prompt") or "") or (texts[0] if len(texts) == 1 else "")


def _unquoted(text: str) -> str:
    """A text without the quotation marks around all of it."""
    text = text.strip()
    while len(text) > 1 and (right := _QUOTES.get(text[0])) == text[-1]:
        inner = text.strip(text[0] + right)
        if text[0] in inner or right in inner:  # "red" and "blue"
            break
        text = inner.strip()
    return text


def _shortened(text: str, words: int) -> str:
    """A text of at most so many words, cut at a comma or a full stop if one is near the end."""
    found = text.split(" ")
    if not words or len(found) <= words:
        return text
    cut = " ".join(found[:words])
    places = [match.start() for match in re.finditer(r"[,.;]", cut)]
    return cut[: places[-1]] if places and places[-1] > len(cut) // 2 else cut.rstrip(",.;:")


Ask = Callable[[str, str, int, float], str]  # instructions, prompt, seed, temperature → answer


def rewrite(
    prompt: str, instructions: Instructions, enhancer: Enhancer, learnt: Iterable[str], ask: Ask
) -> str:
    """A prompt rewritten by a language model. EnhanceFailed."""
    plain = take_out(prompt, learnt)
    if not plain.text or len(plain.pieces) > PIECES_MAX:
        why = "too many brackets and tags" if plain.text else "no words to rewrite"
        raise EnhanceFailed(f"there are {why}")
    answer = ask(instructions.text, plain.text, enhancer.seed, enhancer.temperature)
    return plain.put_back(clean(answer, instructions.words))
