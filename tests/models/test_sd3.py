"""Stable Diffusion 3's transformer against diffusers', with the same random weights."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from tests.models.test_flux import TIME, miss
from tests.support.transformers import config_of, randomise
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.models.sd3 import SD3Transformer, SkipLayers
from txt2img.weights.layouts.transformer_configs import sd3_from_diffusers

TINY = {
    "sample_size": 32,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 24,
    "pos_embed_max_size": 12,
}
MEDIUM = {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}
KINDS = {"3.5 medium": MEDIUM, "3.5 large": {"qk_norm": "rms_norm"}, "3 medium": {}}


def pair(**more: object) -> tuple[SD3Transformer, SD3Transformer2DModel]:
    """The same network, ours and theirs."""
    theirs = randomise(SD3Transformer2DModel(**TINY, **more))
    ours = SD3Transformer(sd3_from_diffusers(config_of(theirs))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(size: tuple[int, int] = (6, 10)) -> tuple[Tensor, Cond]:
    """A batch of two latents, and a condition."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, *size, generator=generator)
    tokens = torch.randn(2, 7, 32, generator=generator)
    return x, Cond(tokens, torch.randn(2, 24, generator=generator))


def expected(
    theirs: SD3Transformer2DModel, x: Tensor, cond: Cond, skip: tuple[int, ...] = ()
) -> Tensor:
    return theirs(x, cond.tokens, cond.pooled, TIME, skip_layers=list(skip)).sample


@pytest.mark.parametrize("size", [(6, 10), (24, 4), (2, 2)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pass_equals_diffusers(kind: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(**KINDS[kind])
    x, cond = inputs(size)
    assert miss(ours(x, TIME, cond), expected(theirs, x, cond)) < 1e-5


@pytest.mark.parametrize("skip", [(0,), (1, 2)])
@torch.no_grad()
def test_layers_are_skipped_as_in_diffusers(skip: tuple[int, ...]) -> None:
    ours, theirs = pair(**MEDIUM)
    x, cond = inputs()
    skipping = SkipLayers(ours, skip)
    assert miss(skipping(x, TIME, cond), expected(theirs, x, cond, skip)) < 1e-5
    assert miss(skipping(x, TIME, cond), ours(x, TIME, cond)) > 1e-2
    assert next(skipping.parameters()) is next(ours.parameters())


@torch.no_grad()
def test_a_picture_beyond_the_table_of_places_is_refused() -> None:
    ours, _ = pair(**MEDIUM)
    x, cond = inputs((26, 4))
    with pytest.raises(BadRequest, match=r"at most 192 pixels a side; got 32x208"):
        ours(x, TIME, cond)


@torch.no_grad()
def test_bfloat16_is_no_further_off_than_diffusers() -> None:
    ours, theirs = pair(**MEDIUM)
    x, cond = inputs()
    exact = ours(x, TIME, cond)
    small = cond.to(torch.bfloat16)
    wanted = expected(theirs.bfloat16(), x.bfloat16(), small)
    got = ours.bfloat16()(x.bfloat16(), TIME, small)
    assert got.dtype == torch.bfloat16
    assert miss(got.float(), exact) < 1.5 * miss(wanted.float(), exact)


def test_gradients_flow() -> None:
    ours, _ = pair(**MEDIUM)
    x, cond = inputs()
    out = ours(x, TIME, cond)
    out.square().mean().backward()
    # The last block's text is only read for its keys and values.
    assert {n for n, p in ours.named_parameters() if p.grad is None} == set()
