"""The tokenizer: words one by one have the whole prompt's tokens; chunks."""

import random
import shutil
import string
from hashlib import sha256
from pathlib import Path

import pytest

from txt2img.errors import BadFile
from txt2img.models import tokenizer
from txt2img.models.tokenizer import Tokenizer
from txt2img.request.compat import PromptRules
from txt2img.weights.tokenizer_files import clip_tokenizer, read_tokenizer

PROMPTS = [
    "",
    " ",
    "a cat's dog'll won't i'd've ''s '' 's 'S'T",
    "it's  two   spaces, (brackets:1.2) [a|b] <x> _under_ __name__",
    "3d 1234 a1b2 !?!...~^`@#$%&*-+=/\\{}",
    "<|startoftext|> <|endoftext|>",
    "x" * 200,
    "ALL CAPITALS And Some",
    "tab\tand\nline",
    "Éclair café naïve 猫 🍎",
]


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    return clip_tokenizer(77, tokenizer.EOS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_words_one_by_one_have_the_whole_prompts_tokens(clip: Tokenizer, prompt: str) -> None:
    for _ in range(2):  # when a word is new, and when it is known
        assert clip.tokens(prompt) == clip._encode(prompt)


def test_any_printable_text_has_the_same_tokens(clip: Tokenizer) -> None:
    chance = random.Random(5)
    letters = string.ascii_letters + string.digits + string.punctuation + "   '''stredvm"
    for _ in range(2000):
        prompt = "".join(chance.choices(letters, k=chance.randint(1, 40)))
        assert clip.tokens(prompt) == clip._encode(prompt)


def test_the_cache_of_words_is_bounded(clip: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "WORD_CACHE", 3)
    own = Tokenizer(clip.vocab, clip.merges)
    for prompt in ("a b c", "d e", "f", "a b c"):
        assert own.tokens(prompt) == own._encode(prompt)
        assert own._encode_word.cache_info().currsize <= 3


def test_a_folders_words_are_parsed_once_and_anew_when_its_files_change(
    sd1_folder: Path, tmp_path: Path
) -> None:
    """What one model learns, or its length, is not another's; nor is the hash."""
    source = sd1_folder / "tokenizer"
    first = read_tokenizer(source, 77, 49408)
    first.embedding_ids["<word>"] = [7]
    hashed = first.fingerprint
    again, short = read_tokenizer(source, 77, 49408), read_tokenizer(source, 20, 49408)
    assert again.vocab is short.vocab is first.vocab
    words = sorted(first.vocab, key=first.vocab.__getitem__)
    rows = [*words, *map(" ".join, first.merges), f"77 {first.pad_id} {first.bos_id}"]
    assert again.fingerprint == hashed == sha256("\n".join(rows).encode()).hexdigest()
    assert again.embedding_ids == {} and short.fingerprint != hashed
    assert len(short.chunks("a")[0]) == 20 and len(again.chunks("a")[0]) == 77
    for name in ("vocab.json", "merges.txt"):
        changed = shutil.copytree(source, tmp_path / name)
        (changed / name).write_bytes((source / name).read_bytes()[:-9])
        with pytest.raises(BadFile):
            read_tokenizer(changed, 77, 49408)


def test_chunks_are_filled_before_the_next_begins(clip: Tokenizer) -> None:
    for rules in (PromptRules(), PromptRules(backtrack=20)):
        for count in (1, 74, 75, 76, 150, 151):
            prompt = " ".join(["red"] * count)
            lengths = [len(part) for part in clip.tokens_by_chunk(prompt, rules)]
            full, rest = divmod(count, 75)
            assert lengths == [75] * full + ([rest] if rest else [])
