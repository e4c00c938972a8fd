"""Tokenizers of language models: prompts → ids, padded or truncated to a length. Need no torch.

T5's, with a weight for each token, and Qwen3's, whose prompts are the user's turn of a chat.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache

from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from txt2img.models.tokenizer import PLAIN, Chunk, Token, digest_of
from txt2img.request.compat import PromptRules
from txt2img.request.prompt_syntax import spans
from txt2img.system.text import shown

CHAT_OPENING = "<|im_start|>user\n"
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """Tokenizer of a language model, for prompts of up to `length` tokens."""

    def __init__(
        self, backend: Backend, length: int, pad_id: int, eos_id: int | None = None
    ) -> None:
        """`eos_id` ends every text; a model without one reads the user's turn of a chat."""
        self.length, self.pad_id, self.eos_id = length, pad_id, eos_id
        self.embedding_ids: dict[str, list[int]] = {}  # textual inversions, which it has none of
        self._backend = backend

    @property
    def vocab(self) -> dict[str, int]:
        """Ids by token, the special ones included."""
        return _vocab(self._backend)

    @cached_property
    def fingerprint(self) -> str:
        """Hash (64 hex digits) of all that decides a text's ids."""
        return _digest(self._backend)(f"\n{self.length} {self.pad_id} {self.eos_id}")

    def serialized(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, of any number, without the end token."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def chunk(self, prompt: str, rules: PromptRules = PLAIN) -> Chunk:
        """At most `length` tokens of a prompt with their weights, parsed by `rules`. BadRequest."""
        [tokens] = self.tokens_by_chunk(prompt, rules)
        end = [] if self.eos_id is None else [(self.eos_id, 1.0)]
        tokens = tokens[: self.length - len(end)] + end
        return Chunk([index for index, _ in tokens], [weight for _, weight in tokens])

    def padded(self, chunk: Chunk) -> Chunk:
        """The chunk with padding up to `length`."""
        empty = self.length - len(chunk.ids)
        return Chunk(chunk.ids + [self.pad_id] * empty, chunk.weights + [1.0] * empty)

    @property
    def reads_chat(self) -> bool:
        """Whether prompts are the user's turn of a chat, which are taken literally."""
        return self.eos_id is None

    @property
    def capacity(self) -> int:
        """Tokens of a prompt that are read: the chat template opens, or the end token ends."""
        return self.length - (len(self.tokens(CHAT_OPENING)) if self.reads_chat else 1)

    def warnings(self, prompt: str, rules: PromptRules) -> list[str]:
        """Words that do not fit, and weights that mean nothing to a chat. BadRequest."""
        [tokens] = self.tokens_by_chunk(prompt, rules)
        lines = []
        if len(tokens) > self.capacity:
            name = "the text encoder" if self.reads_chat else "T5"
            lines.append(
                f"{len(tokens):,} tokens for {name}; all but the first {self.capacity} are left out"
            )
        weighted = next((s for s in spans(prompt, rules.grammar) if s.weight != 1), None)
        if self.reads_chat and weighted is not None:
            lines.append(
                f"this model's text encoder reads brackets as words: {shown(weighted.text)} has "
                "no weight"
            )
        return lines

    def tokens_by_chunk(self, prompt: str, rules: PromptRules = PLAIN) -> list[list[Token]]:
        """All tokens of a prompt with their weights: there is one chunk, of any size. BadRequest.

        The words of one weight are tokenised together, as in ComfyUI.
        """
        parts = spans(prompt, "text" if self.reads_chat else rules.grammar)
        return [[(index, part.weight) for part in parts for index in self.tokens(part.text)]]


@lru_cache(maxsize=2)  # of a hundred thousand tokens, and asked for whenever a model is loaded
def _vocab(backend: Backend) -> dict[str, int]:
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    return vocab


@lru_cache(maxsize=2)
def _digest(backend: Backend) -> Callable[[str], str]:
    return digest_of(backend.to_str())


def chat_prompt(prompt: str, thinking: bool) -> str:
    """Qwen3's chat template around a user's prompt; without `thinking`, its thoughts are empty."""
    thoughts = "" if thinking else "<think>\n\n</think>\n\n"
    return f"{CHAT_OPENING}{prompt}<|im_end|>\n<|im_start|>assistant\n{thoughts}"


def qwen_backend(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Backend:
    """Qwen's byte-pair encoding: words with the sign before them, single digits; their bytes."""
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend
