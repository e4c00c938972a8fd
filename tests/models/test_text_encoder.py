"""Weights of words, and chunks: closed forms over what transformers' CLIP gives."""

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.support import tiny
from txt2img.errors import BadRequest
from txt2img.models.clip import TextEncoder
from txt2img.models.tokenizer import PLAIN
from txt2img.request import Compat
from txt2img.request.compat import RULES, PromptRules
from txt2img.system.device.device import Device
from txt2img.weights.load import load

A1111, COMFYUI = RULES[Compat.A1111].prompt, RULES[Compat.COMFYUI].prompt
DEFAULT = RULES[None].prompt


@cache
def encoder() -> TextEncoder:
    """Our encoder of the tiny model."""
    [text] = load(str(tiny.sd1().folder), Device(torch.device("cpu"), torch.float32)).text.encoders
    return text


@torch.no_grad()
def clip(text: str, layer: int | None = None) -> Tensor:
    """What transformers gives for plain text (1, 77, D)."""
    ids = torch.tensor(encoder().tokenizer.chunks(text))
    out = tiny.sd1().text(ids, output_hidden_states=True)
    return out.last_hidden_state if layer is None else out.hidden_states[layer]


@torch.no_grad()
def ours(text: str, rules: PromptRules) -> Tensor:
    """What we give for a prompt."""
    return encoder().encode([text], rules=rules).tokens


def weights(*values: float) -> Tensor:
    """The weights of the first tokens after BOS (1, 77, 1); the others' are 1."""
    return torch.tensor([1.0, *values, *[1.0] * (76 - len(values))]).reshape(1, 77, 1)


def test_without_brackets_all_rules_give_the_same_bits() -> None:
    for rules in (A1111, COMFYUI, DEFAULT):
        assert torch.equal(ours("a red apple, 3d", rules), ours("a red apple, 3d", PLAIN))


@pytest.mark.parametrize("rules", [A1111, DEFAULT])
def test_a1111_multiplies_and_restores_the_mean(rules: PromptRules) -> None:
    strong = clip("a red cat") * weights(1.0, 1.5, 1.0)
    expected = strong * (clip("a red cat").mean() / strong.mean())
    assert torch.allclose(ours("a (red:1.5) cat", rules), expected, atol=1e-5)


def test_comfyui_scales_the_distance_from_the_empty_prompt() -> None:
    empty = clip("")
    expected = empty + (clip("a red cat") - empty) * weights(1.0, 1.5, 1.0)
    assert torch.allclose(ours("a (red:1.5) cat", COMFYUI), expected, atol=1e-5)


def test_diffusers_reads_brackets_as_text_and_cuts() -> None:
    rules = RULES[Compat.DIFFUSERS].prompt
    assert torch.allclose(ours("a (red:1.5) cat", rules), clip("a (red:1.5) cat"), atol=1e-5)
    assert encoder().chunk_count("cat " * 200, rules) == 1


@pytest.mark.parametrize("skip", [2, 3])
def test_clip_skip_is_an_earlier_layer_and_the_last_norm(skip: int) -> None:
    norm = next(m for n, m in tiny.sd1().text.named_modules() if n.endswith("final_layer_norm"))
    with torch.no_grad():
        expected = norm(clip("a red cat", -skip))
    assert torch.allclose(ours("a red cat", PromptRules(clip_skip=skip)), expected, atol=1e-5)


def test_a_clip_skip_of_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(BadRequest, match="has 3 layers"):
        ours("a red cat", PromptRules(clip_skip=4))


def test_break_pads_its_chunk() -> None:
    both = ours("a cat BREAK a dog", A1111)
    expected = torch.cat([clip("a cat"), clip("a dog")], dim=1)
    assert torch.allclose(both, expected, atol=1e-5)


def test_a_full_chunk_gives_back_what_follows_a_near_comma() -> None:
    tokenizer = encoder().tokenizer
    near = "cat " * 60 + ", " + "dog " * 20
    first, second = tokenizer.weighted_chunks(near, A1111)
    dog = tokenizer.tokens("dog")
    assert first.ids[61:63] == [*tokenizer.tokens(","), tokenizer.eos_id]
    assert second.ids[1:22] == [*dog * 20, tokenizer.eos_id]
    assert [chunk.ids for chunk in tokenizer.weighted_chunks(near)] != [first.ids, second.ids]
    far = "cat " * 54 + ", " + "dog " * 30
    assert tokenizer.weighted_chunks(far, A1111)[0].ids[75] == dog[0]
