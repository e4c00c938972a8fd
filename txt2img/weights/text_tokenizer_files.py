"""Language models' tokenizers: T5's and Qwen3's own, which come with the package, or a folder's."""

import lzma
from functools import cache, lru_cache
from importlib.resources import files as package_files
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from txt2img.errors import BadFile
from txt2img.models.text_tokenizer import TextTokenizer, qwen_backend
from txt2img.system.files import JSON_MAX, read_bounded
from txt2img.system.text import shown
from txt2img.weights.tokenizer_files import byte_letters

T5_PAD, T5_EOS, QWEN_PAD = "<pad>", "</s>", "<|endoftext|>"
# In the order of their ids, which follow the vocabulary's. The first number is of those that
# transformers calls special: they are no text when a model's answer is shown.
QWEN_SPECIAL = 14
QWEN_ADDED = (
    QWEN_PAD,
    *(f"<|{name}|>" for name in ("im_start", "im_end", "object_ref_start", "object_ref_end")),
    *(f"<|{name}|>" for name in ("box_start", "box_end", "quad_start", "quad_end")),
    *(f"<|{name}|>" for name in ("vision_start", "vision_end", "vision_pad")),
    *(f"<|{name}|>" for name in ("image_pad", "video_pad")),
    *("<tool_call>", "</tool_call>"),
    *(f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad")),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)


def t5_tokenizer(length: int) -> TextTokenizer:
    """T5's own tokenizer of 32,100 tokens."""
    return _t5(_shipped_t5(), length, "T5's tokenizer")


def qwen_tokenizer(length: int) -> TextTokenizer:
    """Qwen3's own tokenizer of 151,669 tokens."""
    backend = _shipped_qwen()
    return TextTokenizer(backend, length, _id(backend, QWEN_PAD, "Qwen3's tokenizer"))


def read_t5_tokenizer(folder: Path, length: int) -> TextTokenizer:
    """T5's tokenizer of a diffusers folder; T5's own, if the folder has no tokenizer.json.

    Raises BadFile.
    """
    if not (folder / "tokenizer.json").is_file():
        return t5_tokenizer(length)
    return _t5(_read(folder / "tokenizer.json"), length, shown(folder.name))


def read_qwen_tokenizer(folder: Path, length: int) -> TextTokenizer:
    """Qwen3's tokenizer of a diffusers folder, or its own as for T5. Raises BadFile."""
    if not (folder / "tokenizer.json").is_file():
        return qwen_tokenizer(length)
    backend = _read(folder / "tokenizer.json")
    return TextTokenizer(backend, length, _id(backend, QWEN_PAD, shown(folder.name)))


def _t5(backend: Tokenizer, length: int, name: str) -> TextTokenizer:
    return TextTokenizer(backend, length, _id(backend, T5_PAD, name), _id(backend, T5_EOS, name))


def _id(backend: Tokenizer, token: str, name: str) -> int:
    index: int | None = backend.token_to_id(token)
    if index is None:
        raise BadFile(f"{name}: the vocabulary lacks {token}")
    return index


def _read(path: Path) -> Tokenizer:
    """The tokenizer in a file of the `tokenizers` library. Raises BadFile."""
    content = read_bounded(path, JSON_MAX, "no tokenizer is so large")
    return _parsed(content, path.name)


@lru_cache(maxsize=1)  # a model's files are opened, then loaded
def _parsed(content: bytes, name: str) -> Tokenizer:
    try:
        backend = Tokenizer.from_buffer(content)
    except ValueError as error:  # with the library's reason
        raise BadFile(f"{name}: {shown(str(error))}") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


@cache
def _shipped_t5() -> Tokenizer:
    return _parsed(_unpacked("t5.json.xz"), "t5.json.xz")


@cache
def _shipped_qwen() -> Tokenizer:
    """Qwen3's tokenizer, from its merges: bytes come first in the vocabulary, then merges."""
    lines = _unpacked("qwen3-merges.txt.xz").decode("utf-8").splitlines()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    words = [*byte_letters(), *(left + right for left, right in merges)]
    backend = qwen_backend({word: index for index, word in enumerate(words)}, merges)
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=index < QWEN_SPECIAL)
            for index, token in enumerate(QWEN_ADDED)
        ]
    )
    return backend


def _unpacked(name: str) -> bytes:
    return lzma.decompress((package_files("txt2img.weights") / "tokenizer" / name).read_bytes())
