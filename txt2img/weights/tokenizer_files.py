"""A CLIP tokenizer's vocabulary and merges: from a model's folder, or CLIP's own."""

import gzip
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files as package_files
from pathlib import Path

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.tokenizer import BOS, EOS, Tokenizer
from txt2img.system.files import (
    ADVICE,
    JSON_MAX,
    NO_CONFIG,
    parse_object,
    read_bounded,
    read_json,
)
from txt2img.system.text import shown

Vocab = dict[str, int]
Merges = list[tuple[str, str]]
TOKEN_MAX = 256  # characters


def clip_tokenizer(length: int, pad: str) -> Tokenizer:
    """CLIP's own tokenizer of 49,408 tokens, with `pad` as padding token.

    Raises BadFile for a text encoder whose context is too short for any token.
    """
    if length < 3:
        raise BadFile(f"a text encoder of {length} tokens at once; CLIP's has 77")
    clip = _clip()
    return clip.variant(length, clip.vocab[pad])


def check_vocab(component: str, vocab: Mapping[str, int], rows: int) -> None:
    """Raise BadFile unless a text encoder has a row for each token."""
    if (most := max(vocab.values())) >= rows:
        raise BadFile(
            f"{component} has vectors for {rows:,} tokens; its tokenizer has {most + 1:,} words"
        )


def read_tokenizer(folder: Path, length: int, rows: int) -> Tokenizer:
    """Read a diffusers folder's tokenizer, for a text encoder of `rows` tokens.

    From vocab.json and merges.txt, or tokenizer.json, whose patterns and classes are ignored.
    Raises BadFile.
    """
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        names = ["vocab.json", "merges.txt"]
    elif (folder / "tokenizer.json").is_file():
        names = ["tokenizer.json"]
    else:
        raise BadFile(
            f"no vocab.json with merges.txt, and no tokenizer.json, in {shown(folder.name)}"
        )
    contents = (read_bounded(folder / name, JSON_MAX, NO_CONFIG) for name in names)
    tokenizer = _parsed(rows, *contents)
    return tokenizer.variant(length, _pad(folder, tokenizer.vocab))


@lru_cache(maxsize=2)  # a model's files are opened, then loaded; SDXL's two are often the same
def _parsed(rows: int, content: bytes, merge_lines: bytes | None = None) -> Tokenizer:
    """A tokenizer of vocab.json and merges.txt, or of tokenizer.json alone. Raises BadFile."""
    if merge_lines is None:
        vocab, merges = _from_tokenizer_json(content)
    else:
        vocab, merges = parse_object(content, "vocab.json"), _lines(merge_lines)
    words = _checked_vocab(vocab, rows)
    return Tokenizer(words, _checked_merges(merges, words))


@cache
def _clip() -> Tokenizer:
    """CLIP's tokenizer; its vocabulary is bytes, bytes at a word's end, and merges."""
    packed = (package_files("txt2img.weights") / "tokenizer" / "merges.txt.gz").read_bytes()
    merges = [_pair(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()[1:]]
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    return Tokenizer({word: index for index, word in enumerate([*words, BOS, EOS])}, merges)


def byte_letters() -> list[str]:
    """GPT-2's printable character for each byte, printable bytes first."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right


def _lines(content: bytes) -> list[str]:
    """The merges of a merges.txt, one a line, after an optional line with the version."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile("merges.txt: not UTF-8 text") from error
    return [line for line in text.split("\n") if line.strip() and not line.startswith("#version")]


def _from_tokenizer_json(data: bytes) -> tuple[object, object]:
    """Vocabulary and merges of a `tokenizers` file, with its added tokens."""
    content = parse_object(data, "tokenizer.json")
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UnknownLayout("tokenizer.json: not a byte-pair tokenizer, as CLIP's is")
    vocab, added = model.get("vocab"), content.get("added_tokens")
    if isinstance(vocab, dict) and isinstance(added, list):
        tokens = [token for token in added if isinstance(token, dict)]
        vocab = vocab | {str(token.get("content")): token.get("id") for token in tokens}
    return vocab, model.get("merges")


def _checked_vocab(vocab: object, rows: int) -> Vocab:
    """The vocabulary, if its ids are unique and below `rows`. Raises BadFile."""
    if not isinstance(vocab, dict) or not {BOS, EOS} <= vocab.keys():
        raise BadFile(f"the tokenizer's vocabulary lacks {BOS} or {EOS}")
    if len(set(map(repr, vocab.values()))) != len(vocab):
        raise BadFile("the tokenizer's vocabulary has two words with the same id")
    words: Vocab = {}
    for word, index in vocab.items():
        if type(index) is not int or not 0 <= index < rows or len(word) > TOKEN_MAX:
            raise BadFile(
                f"the tokenizer's word {shown(word)} has the id {shown(index)}; "
                f"the text encoder has {rows} rows"
            )
        words[word] = index
    return words


def _checked_merges(merges: object, words: Vocab) -> Merges:
    """The merges, if they and their results are in the vocabulary. Raises BadFile."""
    if not isinstance(merges, list):
        raise BadFile("the tokenizer has no list of merges")
    pairs: Merges = []
    for merge in merges:
        pair = tuple(merge.split()) if isinstance(merge, str) else merge
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadFile(f"the tokenizer's merge {shown(merge)} is not two words")
        left, right = str(pair[0]), str(pair[1])
        if not {left, right, left + right} <= words.keys():
            raise BadFile(
                f"the tokenizer's merge {shown(f'{left} {right}')} is not in its vocabulary"
            )
        pairs.append((left, right))
    _check_whole(words, pairs)
    return pairs


def _check_whole(words: Vocab, merges: Merges) -> None:
    """Raise BadFile if merges are missing: each word comes from one, but for letters.

    Words behind the two special ones were added by hand.
    """
    made = {left + right for left, right in merges}
    end = min(words[BOS], words[EOS])
    lost = [
        word
        for word, index in words.items()
        if index < end and word not in made and len(word.removesuffix("</w>")) > 1
    ]
    if lost:
        raise BadFile(
            f"the tokenizer is cut short: {len(merges):,} merges, and none makes the word "
            f"{shown(lost[0])}, nor {len(lost) - 1:,} others; {ADVICE}"
        )


def _pad(folder: Path, words: Vocab) -> int:
    """The id of the padding token that the folder names, else of the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        token = read_json(folder / name).get("pad_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            if text not in words:
                raise BadFile(f"{name}: the pad_token {shown(text)} is not in the vocabulary")
            return words[text]
    return words[EOS]
