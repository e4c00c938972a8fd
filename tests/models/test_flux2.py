"""FLUX.2's transformer against diffusers', with the same random weights."""

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor

from tests.models.test_flux import TIME, miss
from tests.support.transformers import config_of, randomise
from txt2img.diffusion.conditioning import Cond
from txt2img.models.flux2 import Flux2Transformer
from txt2img.weights.layouts.transformer_configs import flux2_from_diffusers

TINY = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (4, 4, 4, 4),
}


def pair(guidance: bool = False) -> tuple[Flux2Transformer, Flux2Transformer2DModel]:
    """The same network, ours and theirs."""
    theirs = randomise(Flux2Transformer2DModel(**TINY, guidance_embeds=guidance))
    ours = Flux2Transformer(flux2_from_diffusers(config_of(theirs))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def latents(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(2, 128, *size, generator=torch.Generator().manual_seed(seed))


def condition(references: tuple[Tensor, ...] = ()) -> Cond:
    tokens = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(3))
    return Cond(tokens, guidance=torch.tensor([4.0, 2.5]), references=references)


def expected(theirs: Flux2Transformer2DModel, x: Tensor, cond: Cond) -> Tensor:
    """Their output with tokens and places made by their pipeline."""
    made = Flux2KleinPipeline
    places = [made._prepare_latent_ids(x)[:1]]
    if cond.references:
        places.append(made._prepare_image_ids([r[:1] for r in cond.references]))
    out = theirs(
        torch.cat([made._pack_latents(picture) for picture in (x, *cond.references)], 1),
        cond.tokens,
        TIME / 1000,
        torch.cat(places, 1),
        made._prepare_text_ids(cond.tokens),
        cond.guidance if theirs.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    count = x.shape[-2] * x.shape[-1]
    return made._unpack_latents_with_ids(out[:, :count], made._prepare_latent_ids(x))


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (1, 1)])
@pytest.mark.parametrize("guidance", [False, True])
@torch.no_grad()
def test_a_pass_equals_diffusers(size: tuple[int, int], guidance: bool) -> None:
    ours, theirs = pair(guidance)
    x, cond = latents(*size), condition()
    assert miss(ours(x, TIME, cond), expected(theirs, x, cond)) < 1e-5


@torch.no_grad()
def test_references_follow_the_latent() -> None:
    ours, theirs = pair()
    x, cond = latents(3, 5), condition((latents(2, 4, seed=4), latents(4, 1, seed=5)))
    got = ours(x, TIME, cond)
    assert miss(got, expected(theirs, x, cond)) < 1e-5
    assert miss(got, ours(x, TIME, condition())) > 1e-2


@torch.no_grad()
def test_bfloat16_is_no_further_off_than_diffusers() -> None:
    ours, theirs = pair()
    x, cond = latents(3, 5), condition()
    exact = ours(x, TIME, cond)
    small = cond.to(torch.bfloat16)
    wanted = expected(theirs.bfloat16(), x.bfloat16(), small)
    got = ours.bfloat16()(x.bfloat16(), TIME, small)
    assert got.dtype == torch.bfloat16
    assert miss(got.float(), exact) < 1.5 * miss(wanted.float(), exact)


def test_gradients_flow() -> None:
    ours, _ = pair()
    ours(latents(3, 5), TIME, condition()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
