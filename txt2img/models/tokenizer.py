"""CLIP's tokens: prompts → ids in chunks, each with its weight. Knows no torch.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

import re
from dataclasses import dataclass

from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from txt2img.request.adapters import find_words
from txt2img.request.compat import PromptRules
from txt2img.request.prompt_syntax import spans

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
PLAIN = PromptRules("text")
# What CLIP's pattern finds in small printable ASCII, for Python's own expressions.
_ASCII_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
WORD_MAX, WORDS_MAX = 64, 2**16  # characters of a word whose tokens are kept, and how many are
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def normalizer() -> normalizers.Normalizer:
    """CLIP's clean-up of text: composed Unicode, single spaces, small letters."""
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


class Tokenizer:
    """Byte-pair encoding in CLIP's manner, cut into chunks that the text encoder can take."""

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
        self.words: dict[str, list[int]] = {}  # learnt ones
        self._known: dict[str, list[int]] = {}  # tokens of words that were met before
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

    @property
    def pad(self) -> str:
        """The token that fills short prompts."""
        return next(word for word, index in self.vocab.items() if index == self.pad_id)

    def tokens(self, prompt: str) -> list[int]:
        """The prompt's token ids, without first and last."""
        if not (prompt.isascii() and prompt.isprintable()):
            return self._encoded(prompt)
        # No token goes beyond a word, and most words come again and again.
        words = _ASCII_WORDS.findall(prompt.lower())
        return [index for word in words for index in self._known.get(word) or self._word(word)]

    def _word(self, word: str) -> list[int]:
        """A word's tokens, kept for the next time."""
        ids = self._encoded(word)
        if len(word) <= WORD_MAX:
            if len(self._known) >= WORDS_MAX:
                self._known.clear()
            self._known[word] = ids
        return ids

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def units(self, prompt: str) -> list[list[int]]:
        """The prompt's ids, those that must stay together as one: each token, each learnt word."""
        units: list[list[int]] = []
        if not self.words:
            return [[index] for index in self.tokens(prompt)]
        end = 0
        for start, after, word in find_words(self.words, prompt):
            units += [[index] for index in self.tokens(prompt[end:start])]
            units.append(self.words[word])
            end = after
        return units + [[index] for index in self.tokens(prompt[end:])]

    def chunks(self, prompt: str) -> list[list[int]]:
        """A plain text in chunks of `length` ids, each begun, ended and padded; at least one."""
        return [chunk.ids for chunk in self.read(prompt)]

    def read(self, prompt: str, reading: PromptRules = PLAIN) -> list["Chunk"]:
        """The same of a prompt that is read so, with its weights. BadRequest."""
        parts = self.parts(prompt, reading)
        return [self.chunk(part) for part in (parts[:1] if reading.truncate else parts)]

    def parts(self, prompt: str, reading: PromptRules = PLAIN) -> "list[list[Token]]":
        """A prompt's tokens, those of a chunk together, even if all but one are cut. BadRequest."""
        parts: list[list[Token]] = [[]]
        room = self.length - 2
        comma = self.vocab.get(",</w>")
        for span in spans(prompt, reading.grammar):
            if span.starts_chunk:
                parts.append([])
            ids = [] if self.words else self.tokens(span.text)
            if ids and len(parts[-1]) + len(ids) <= room:  # as most: nothing has to move
                parts[-1] += [(index, span.weight) for index in ids]
                continue
            for unit in self.units(span.text):
                if len(parts[-1]) + len(unit) > room:
                    back = reading.backtrack if len(parts[-1]) == room else 0
                    kept = held(parts[-1], comma, 0 if unit == [comma] else back)
                    parts[-1], moved = parts[-1][:kept], parts[-1][kept:]
                    parts.append(moved)
                parts[-1] += [(index, span.weight) for index in unit]
        return parts

    def chunk(self, part: "list[Token]") -> "Chunk":
        """Tokens as a chunk of its own."""
        ids = [self.bos_id, *(index for index, _ in part), self.eos_id]
        weights = [1.0, *(weight for _, weight in part), 1.0]
        empty = self.length - len(ids)
        return Chunk(ids + [self.pad_id] * empty, weights + [1.0] * empty)


Token = tuple[int, float]  # id, weight


@dataclass(frozen=True)
class Chunk:
    """What the text encoder takes at once, and how much each token counts."""

    ids: list[int]
    weights: list[float]


def held(part: list[Token], comma: int | None, backtrack: int) -> int:
    """How many tokens a full chunk keeps: up to its last comma, if few enough come after it."""
    after = next((i for i, (index, _) in enumerate(reversed(part)) if index == comma), backtrack)
    return len(part) - after if after < backtrack else len(part)
