"""Prompts whose conditions are as long as their words: what may go through the network together."""

from dataclasses import replace

import pytest
import torch

from tests.support import tiny
from txt2img.diffusion.conditioning import Cond, ScheduledCond
from txt2img.models.clip import TextEncoder
from txt2img.models.configs import TextConfig
from txt2img.models.prompt_encoders import SD3_T5_TOKENS, SD3Text
from txt2img.models.tokenizer import EOS
from txt2img.pipeline.denoiser import equal_length_runs, lengths
from txt2img.pipeline.encode_prompts import encode
from txt2img.request import Compat, Request
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.tokenizer_files import clip_tokenizer


def prompt(*rows: tuple[int, int]) -> ScheduledCond:
    """A prompt over the steps: the last step and the number of tokens of each text."""
    return [(until, Cond(torch.zeros(1, count, 4))) for until, count in rows]


def test_prompts_go_together_that_are_equally_long_at_all_steps() -> None:
    plain, edited = prompt((9, 7)), prompt((3, 7), (9, 8))
    same = prompt((4, 7), (9, 7))
    assert lengths([plain, same]) == [((7, 0),)] * 2
    assert lengths([edited]) == [((7, 3), (8, 0))]
    assert lengths([edited]) == lengths([prompt((1, 7), (3, 7), (9, 8))])
    conds = [(plain, plain), (same, plain), (edited, plain), (edited, plain), (plain, edited)]
    runs = equal_length_runs(conds, [[1.0]] * 5)
    assert runs == [slice(0, 2), slice(2, 4), slice(4, 5)]


@pytest.mark.parametrize("compat", [Compat.A1111, Compat.COMFYUI, None])
def test_parts_of_and_are_equally_long_with_tokens_after_clips(compat: Compat | None) -> None:
    model = load(str(tiny.sd1().folder), Device(torch.device("cpu"), torch.float32))
    torch.manual_seed(1)
    clip = TextEncoder(
        TextConfig(width=8, layers=1, heads=1, mlp=8, pooled=True), clip_tokenizer(77, EOS)
    )
    model.text = SD3Text([clip.eval().requires_grad_(False)], width=8)  # type: ignore[assignment]
    asked = Request(f"dog AND {'cat ' * 160}", "blurry", "m", 64, 64, 4, 2.0)
    asked = replace(asked, compat=compat).filled(model.family.defaults)
    *positive, [(_, unwanted)] = encode(model, asked, rules(asked))
    full = 3 * 77 + SD3_T5_TOKENS
    assert {cond.tokens.shape for [(_, cond)] in positive} == {(1, full, 8)}
    short = rules(asked).no_padding
    assert unwanted.tokens.shape[1] == (77 + SD3_T5_TOKENS if short else full)
