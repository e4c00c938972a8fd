"""Tokenizers of language models: those that come with the package, and those of folders."""

import json
from functools import cache
from pathlib import Path

import pytest
from transformers import Qwen2TokenizerFast, T5TokenizerFast

from tests.support.tiny_text import TEMPLATE
from txt2img.errors import BadFile
from txt2img.models.text_tokenizer import TextTokenizer, chat_prompt
from txt2img.request.compat import PromptRules
from txt2img.weights import text_tokenizer_files
from txt2img.weights.text_tokenizer_files import (
    QWEN_ADDED,
    QWEN_SPECIAL,
    qwen_tokenizer,
    read_qwen_tokenizer,
    read_t5_tokenizer,
    t5_tokenizer,
)

PROMPTS = (
    "a red apple",
    "",
    " ",
    "  two  spaces   ",
    "Ünïcödé ﬁ ligature \U0001d518 ① ﬀ ½ ™ …",
    "猫とリンゴ 一只猫 مرحبا שלום",
    "emoji 🐈‍⬛ 👩🏽‍🚀",
    "line\nbreak\ttab\r\n\n\n",
    "</s> <extra_id_3> <pad> <unk> <extra_id_0>text</s>more",
    "<|im_start|>user <|im_end|><think>\n</think> <|endoftext|> <tool_call>",
    "don't I'll WE'VE 12345 3.14",
    "(word:1.2) [a|b] {x} AND BREAK",
    "e\u0301 vs \u00e9 \u200b zero\u00a0nbsp \u2028 sep \uff21\uff42\uff43 \uff11\uff12",
    "\u0000null ▁ metaspace ▁▁",
    "a" * 700,
    "a very long prompt, " * 120,
)
LENGTH = 77


@cache
def their_t5(folder: Path) -> T5TokenizerFast:
    """transformers' tokenizer of T5, whose patterns are its own, with our vocabulary."""
    (folder / "tokenizer.json").write_bytes(text_tokenizer_files._unpacked("t5.json.xz"))
    return T5TokenizerFast.from_pretrained(folder)


@cache
def their_qwen(folder: Path) -> Qwen2TokenizerFast:
    """transformers' tokenizer of Qwen, whose patterns are its own, with our merges."""
    vocab = {t: i for t, i in qwen_tokenizer(LENGTH).vocab.items() if t not in QWEN_ADDED}
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    merges = text_tokenizer_files._unpacked("qwen3-merges.txt.xz").decode("utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
    rows = {
        len(vocab) + n: {"content": token, "special": n < QWEN_SPECIAL, "normalized": False}
        for n, token in enumerate(QWEN_ADDED)
    }
    config = {"added_tokens_decoder": rows, "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return Qwen2TokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' tokenizers by name."""
    return {
        "t5": their_t5(tmp_path_factory.mktemp("t5")),
        "qwen": their_qwen(tmp_path_factory.mktemp("qwen")),
    }


OURS = {"t5": t5_tokenizer, "qwen": qwen_tokenizer}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_equal_transformers(theirs, name, prompt):
    ours = OURS[name](LENGTH)
    settings = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    assert (
        ours.padded(ours.chunk(prompt, PromptRules("text"))).ids
        == theirs[name](prompt, **settings).input_ids
    )
    plain = theirs[name](prompt, add_special_tokens=False).input_ids
    assert ours.tokens(prompt) == plain


def test_published_ids():
    # From the documentation of transformers, of T5 and of Qwen2.
    text = "translate English to German: The house is wonderful."
    assert t5_tokenizer(LENGTH).chunk(text).ids == [
        *(13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1)
    ]
    assert qwen_tokenizer(LENGTH).chunk("Hello world").ids == [9707, 1879]
    assert qwen_tokenizer(LENGTH).chunk(" Hello world").ids == [21927, 1879]


def test_their_sizes():
    assert max(t5_tokenizer(LENGTH).vocab.values()) == 32099
    assert max(qwen_tokenizer(LENGTH).vocab.values()) == 151668
    assert qwen_tokenizer(LENGTH).pad_id == 151643


@pytest.mark.parametrize("thinking", [True, False])
def test_the_chat_template_is_qwens(theirs, thinking):
    theirs["qwen"].chat_template = TEMPLATE
    for prompt in PROMPTS:
        message = [{"role": "user", "content": prompt}]
        assert chat_prompt(prompt, thinking) == theirs["qwen"].apply_chat_template(
            message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )


def test_weights_follow_their_words():
    t5 = t5_tokenizer(8)
    chunk = t5.padded(t5.chunk("red (apple:1.5)", PromptRules("a1111")))
    red, apple = t5.tokens("red"), t5.tokens("apple")
    assert chunk.ids == [*red, *apple, 1] + [0] * (7 - len(red) - len(apple))
    assert chunk.weights[len(red) : len(red) + len(apple)] == [1.5] * len(apple)
    assert set(chunk.weights[: len(red)]) == set(chunk.weights[len(red) + len(apple) :]) == {1.0}


def test_what_is_not_read_is_told():
    t5, qwen3 = t5_tokenizer(8), qwen_tokenizer(8)
    rules = PromptRules("a1111")
    fits, cut = (
        "apple apple apple apple apple",
        "(apple apple apple apple apple:1.2) pear pear pear",
    )
    assert t5.warnings("(red:1.2) apple", rules) == qwen3.warnings(fits, rules) == []
    assert t5.capacity == 7 and qwen3.capacity == 5
    assert len(t5.chunk(cut, rules).ids) == 8
    [line] = t5.warnings(cut, rules)
    [tokens] = t5.tokens_by_chunk(cut, rules)
    assert line == f"{len(tokens)} tokens for T5; all but the first 7 are left out"
    long, literal = qwen3.warnings(cut, rules)
    assert "all but the first 5 are left out" in long
    assert literal.endswith('brackets as words: "apple apple apple apple apple" has no weight')
    assert qwen3.warnings("(red)", PromptRules("text")) == []
    assert qwen3.tokens_by_chunk("(red:1.2)", rules) == qwen3.tokens_by_chunk("(red:1.2)")


def test_a_folders_tokenizer_is_read(tmp_path):
    own = t5_tokenizer(LENGTH)
    assert read_t5_tokenizer(tmp_path, LENGTH).tokens("apple") == own.tokens("apple")
    assert read_qwen_tokenizer(tmp_path, LENGTH).pad_id == 151643
    vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["a", -1.0]]
    content = {"model": {"type": "Unigram", "unk_id": 2, "vocab": vocab}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    small = read_t5_tokenizer(tmp_path, 4)
    assert isinstance(small, TextTokenizer)
    assert small.padded(small.chunk("aba")).ids == [3, 2, 3, 1]


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"type": "BPE", "vocab": 3}}'])
def test_a_broken_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    for read in (read_t5_tokenizer, read_qwen_tokenizer):
        with pytest.raises(BadFile, match=r"tokenizer\.json"):
            read(tmp_path, LENGTH)
    (tmp_path / "tokenizer.json").write_text(
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "utf-8"
    )
    with pytest.raises(BadFile, match="vocabulary lacks"):
        read_qwen_tokenizer(tmp_path, LENGTH)
