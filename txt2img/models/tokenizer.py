"""CLIP tokenizer: prompts → ids in chunks, each with its weight. Needs no torch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from hashlib import sha256
from itertools import islice
from typing import Protocol

from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from txt2img.request.adapters import find_words
from txt2img.request.compat import PromptRules, Rules
from txt2img.request.prompt_syntax import schedule, spans, split_and
from txt2img.request.request import Request

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
Token = tuple[int, float]  # id, weight
PLAIN = PromptRules("text")
# CLIP's pattern for lower-case printable ASCII, in Python's own, faster expressions.
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
WORD_CACHE = 2**16  # words whose tokens are cached
TEXTS_MAX = 16  # of an edited prompt's texts, the first are counted
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Chunk:
    """Input of the text encoder: token ids, and each one's weight."""

    ids: list[int]
    weights: list[float]


def normalizer() -> normalizers.Normalizer:
    """CLIP's normalisation of text: composed Unicode, single spaces, lower case."""
    return normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """CLIP's words: runs of letters, single digits, runs of other signs; then their bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


class PromptTokenizer(Protocol):
    """A text encoder's tokenizer: what the program knows of every kind."""

    embedding_ids: dict[str, list[int]]  # of the words of textual inversions
    length: int  # tokens at once

    @property
    def vocab(self) -> Mapping[str, int]:
        """Ids by token."""

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides a text's ids."""

    def tokens_by_chunk(self, prompt: str, rules: PromptRules = ...) -> list[list[Token]]:
        """All tokens of a prompt with their weights, in chunks. BadRequest."""

    def warnings(self, prompt: str, rules: PromptRules) -> list[str]:
        """Words and weights that the text encoder does not take of a prompt. BadRequest."""


class Tokenizer:
    """CLIP's byte-pair encoding, split into chunks of the text encoder's length."""

    def __init__(
        self,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        length: int = 77,
        pad_id: int | None = None,
    ) -> None:
        self.vocab, self.merges, self.length = vocab, merges, length
        self.bos_id, self.eos_id = vocab[BOS], vocab[EOS]
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self.embedding_ids: dict[str, list[int]] = {}  # textual inversions
        self._backend = Backend(
            models.BPE(
                vocab=vocab,
                merges=merges,
                continuing_subword_prefix="",
                end_of_word_suffix="</w>",
                unk_token=EOS,
            )
        )
        self._backend.normalizer = normalizer()
        self._backend.pre_tokenizer = pre_tokenizer()
        self._encode_word = lru_cache(maxsize=WORD_CACHE)(self._encode)
        self._words_digest = cache(self._digest_words)

    def variant(self, length: int, pad_id: int) -> "Tokenizer":
        """The same words for another length and padding token, without textual inversions."""
        other = copy(self)
        other.length, other.pad_id, other.embedding_ids = length, pad_id, {}
        other.__dict__.pop("fingerprint", None)
        return other

    @property
    def pad(self) -> str:
        """Token that pads short prompts."""
        return next(word for word, index in self.vocab.items() if index == self.pad_id)

    @cached_property
    def fingerprint(self) -> str:
        """Hash (64 hex digits) of all that decides a text's ids."""
        return self._words_digest()(f"\n{self.length} {self.pad_id} {self.bos_id}")

    def _digest_words(self) -> Callable[[str], str]:
        words = sorted(self.vocab, key=self.vocab.__getitem__)
        return digest_of("\n".join([*words, *map(" ".join, self.merges)]))

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of a prompt, without the first and last."""
        if not (prompt.isascii() and prompt.isprintable()):
            return self._encode(prompt)
        # No token spans two words, and words repeat.
        words = _ASCII_WORDS.findall(prompt.lower())
        return [index for word in words for index in self._encode_word(word)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def units(self, prompt: str) -> list[list[int]]:
        """Token ids of a prompt, in groups that no chunk may split: tokens, textual inversions."""
        units, end = list[list[int]](), 0
        for start, after, word in find_words(self.embedding_ids, prompt):
            units += [[index] for index in self.tokens(prompt[end:start])]
            units.append(self.embedding_ids[word])
            end = after
        return units + [[index] for index in self.tokens(prompt[end:])]

    def chunks(self, prompt: str) -> list[list[int]]:
        """Chunks of a plain text, at least one, each of `length` ids with padding."""
        return [chunk.ids for chunk in self.weighted_chunks(prompt)]

    def weighted_chunks(self, prompt: str, rules: PromptRules = PLAIN) -> list[Chunk]:
        """Chunks of a prompt with its tokens' weights, parsed by `rules`. BadRequest."""
        chunks = self.tokens_by_chunk(prompt, rules)
        return [self.padded(chunk) for chunk in (chunks[:1] if rules.truncate else chunks)]

    def tokens_by_chunk(self, prompt: str, rules: PromptRules = PLAIN) -> list[list[Token]]:
        """Tokens of each chunk, including those that `rules` truncate. BadRequest."""
        chunks: list[list[Token]] = [[]]
        capacity = self.length - 2
        comma = self.vocab.get(",</w>")
        for span in spans(prompt, rules.grammar):
            if span.starts_chunk:
                chunks.append([])
            for unit in self.units(span.text):
                if len(chunks[-1]) + len(unit) > capacity:
                    backtrack = rules.backtrack if len(chunks[-1]) == capacity else 0
                    cut = tokens_before_comma(
                        chunks[-1], comma, 0 if unit == [comma] else backtrack
                    )
                    chunks[-1], moved = chunks[-1][:cut], chunks[-1][cut:]
                    chunks.append(moved)
                chunks[-1] += [(index, span.weight) for index in unit]
        return chunks

    def warnings(self, prompt: str, rules: PromptRules) -> list[str]:
        """None: prompts of any length and weights mean something to CLIP."""
        return []

    def padded(self, tokens: list[Token]) -> Chunk:
        """A chunk of these tokens, with first and last token and padding."""
        ids = [self.bos_id, *(index for index, _ in tokens), self.eos_id]
        weights = [1.0, *(weight for _, weight in tokens), 1.0]
        empty = self.length - len(ids)
        return Chunk(ids + [self.pad_id] * empty, weights + [1.0] * empty)


def digest_of(text: str) -> Callable[[str], str]:
    """The hash (64 hex digits) of a long text and an end, which is all that is hashed each time."""
    begun = sha256(text.encode("utf-8", "surrogatepass"))

    def with_end(end: str) -> str:
        whole = begun.copy()
        whole.update(end.encode())
        return whole.hexdigest()

    return with_end


def tokens_before_comma(tokens: list[Token], comma: int | None, backtrack: int) -> int:
    """Number of tokens up to a full chunk's last comma, if fewer than `backtrack` follow it."""
    after = next((i for i, (index, _) in enumerate(reversed(tokens)) if index == comma), backtrack)
    return len(tokens) - after if after < backtrack else len(tokens)


def token_counts(
    tokenizers: Sequence[PromptTokenizer], request: Request, rules: Rules
) -> dict[str, list[int]]:
    """The tokens of each chunk of a filled request's two prompts, where they are longest."""
    steps = request.steps or 1
    return {
        "prompt": _longest(tokenizers, _texts(request.prompt, rules, steps, True), rules),
        "negative": _longest(tokenizers, _texts(request.negative, rules, steps, False), rules),
    }


def encoder_warnings(
    tokenizers: Sequence[PromptTokenizer], request: Request, rules: Rules
) -> list[str]:
    """Warnings of what the text encoders do not take of a filled request's prompts, each once."""
    steps = request.steps or 1
    lines = [
        f"{name}: {line}"
        for name, prompt in (("prompt", request.prompt), ("negative prompt", request.negative))
        for text in _texts(prompt, rules, steps, name == "prompt")
        for tokenizer in tokenizers
        for line in tokenizer.warnings(text, rules.prompt)
    ]
    return list(dict.fromkeys(lines))


def _texts(prompt: str, rules: Rules, steps: int, is_positive: bool) -> Iterator[str]:
    """The texts that are encoded for a prompt: the parts that AND joins, each as it is edited."""
    if not rules.prompt_editing:
        yield prompt
        return
    for _, part in split_and(prompt, rules.trailing_weight) if is_positive else [(1.0, prompt)]:
        edits = dict.fromkeys(text for _, text in schedule(part, steps, rules.strict_edits))
        yield from islice(edits, TEXTS_MAX)


def _longest(
    tokenizers: Sequence[PromptTokenizer], texts: Iterable[str], rules: Rules
) -> list[int]:
    """The tokens of each chunk of the text with the most tokens."""
    counts = [
        [len(part) for part in tokenizer.tokens_by_chunk(text, rules.prompt)] if text else [0]
        for text in texts
        for tokenizer in tokenizers
    ]
    return max(counts, key=sum)
