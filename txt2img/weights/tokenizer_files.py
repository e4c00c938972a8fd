"""A CLIP tokenizer's words and merges: from a model's folder, or the ones that ship here."""

import gzip
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.tokenizer import BOS, EOS, Tokenizer
from txt2img.system.files import JSON_MAX, open_regular, read_json
from txt2img.system.text import shown

Vocab = dict[str, int]
Merges = list[tuple[str, str]]
WORD_MAX = 256  # characters in one token


def shipped(length: int, pad: str) -> Tokenizer:
    """CLIP's own tokenizer of 49,408 tokens, short prompts filled by `pad`.

    Raises BadFile for a text encoder that has no place for a word.
    """
    vocab, merges = _clip()
    if length < 3:
        raise BadFile(f"a text encoder of {length} tokens at once; CLIP's has 77")
    return Tokenizer(vocab, merges, length=length, pad_id=vocab[pad])


def check_rows(component: str, tokenizer: Tokenizer, rows: int) -> None:
    """Raise BadFile unless a text encoder has a row for each of its tokenizer's words."""
    if (most := max(tokenizer.vocab.values())) >= rows:
        raise BadFile(
            f"{component} has vectors for {rows:,} tokens; its tokenizer has {most + 1:,} words"
        )


def tokenizer(folder: Path, length: int, rows: int) -> Tokenizer:
    """The tokenizer in a diffusers folder's subfolder, for an encoder of `rows` tokens.

    Read are vocab.json and merges.txt, or tokenizer.json; no pattern or class named in them is
    ever used. Raises BadFile.
    """
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab: object = read_json(folder / "vocab.json")
        merges: object = _lines(folder / "merges.txt")
    elif (folder / "tokenizer.json").is_file():
        vocab, merges = _from_tokenizer_json(folder / "tokenizer.json")
    else:
        raise BadFile(
            f"no vocab.json with merges.txt, and no tokenizer.json, in {shown(folder.name)}"
        )
    words = _checked_vocab(vocab, rows)
    return Tokenizer(
        words, _checked_merges(merges, words), length=length, pad_id=_pad(folder, words)
    )


@cache
def _clip() -> tuple[Vocab, Merges]:
    """CLIP's vocabulary, which follows from its merges: bytes, bytes that end words, merges."""
    packed = (package_files("txt2img.weights") / "tokenizer" / "merges.txt.gz").read_bytes()
    merges = [_pair(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()[1:]]
    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    return {word: index for index, word in enumerate([*words, BOS, EOS])}, merges


def _byte_letters() -> list[str]:
    """A printable character for each byte, in GPT-2's order: printable bytes first."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def _pair(line: str) -> tuple[str, str]:
    left, _, right = line.partition(" ")
    return left, right


def _lines(path: Path) -> list[str]:
    """The merges in a text file, one a line, after a first line that may name the version."""
    with open_regular(path) as file:
        content = file.read(JSON_MAX + 1)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path.name}: not UTF-8 text") from error
    if len(content) > JSON_MAX:
        raise BadFile(f"{path.name}: larger than {JSON_MAX:,} bytes")
    return [line for line in text.split("\n") if line.strip() and not line.startswith("#version")]


def _from_tokenizer_json(path: Path) -> tuple[object, object]:
    """Vocabulary and merges of a `tokenizers` file, whose special tokens may stand apart."""
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UnknownLayout(f"{path.name}: not a byte-pair tokenizer, as CLIP's is")
    vocab, added = model.get("vocab"), content.get("added_tokens")
    if isinstance(vocab, dict) and isinstance(added, list):
        tokens = [token for token in added if isinstance(token, dict)]
        vocab = vocab | {str(token.get("content")): token.get("id") for token in tokens}
    return vocab, model.get("merges")


def _checked_vocab(vocab: object, rows: int) -> Vocab:
    """Words with ids of their own, all below `rows`."""
    if not isinstance(vocab, dict) or not {BOS, EOS} <= vocab.keys():
        raise BadFile(f"the tokenizer's vocabulary lacks {BOS} or {EOS}")
    if len(set(map(repr, vocab.values()))) != len(vocab):
        raise BadFile("the tokenizer's vocabulary has two words with the same id")
    words: Vocab = {}
    for word, index in vocab.items():
        if type(index) is not int or not 0 <= index < rows or len(word) > WORD_MAX:
            raise BadFile(
                f"the tokenizer's word {shown(word)} has the id {shown(index)}; "
                f"the text encoder has {rows} rows"
            )
        words[word] = index
    return words


def _checked_merges(merges: object, words: Vocab) -> Merges:
    """Pairs of words whose union is a word."""
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
    return pairs


def _pad(folder: Path, words: Vocab) -> int:
    """The id of the token that fills short prompts: the folder says which, else the last token."""
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
