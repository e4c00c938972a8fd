"""Train a byte-pair tokenizer in CLIP's form on captions."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from txt2img.models.tokenizer import BOS, EOS, normalizer, pre_tokenizer


def train_bpe(captions: Iterable[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges, `size` entries at most, trained on captions.

    Every byte is in it, inside and at the end of a word, so no text is unknown (Sennrich et al.
    2016; the alphabet is GPT-2's). The last two entries begin and end a text.
    """
    backend = Backend(models.BPE(end_of_word_suffix="</w>"))
    backend.normalizer = normalizer()
    backend.pre_tokenizer = pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(alphabet) - 2,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
    )
    backend.train_from_iterator(sorted(set(captions)), trainer)
    merges = [_pair(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens = [*letters, *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge as a pair; tokenizers has used both text and lists."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
