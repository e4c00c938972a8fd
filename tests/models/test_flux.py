"""FLUX.1's transformer against diffusers', with the same random weights."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor

from tests.support.transformers import config_of, randomise
from txt2img.diffusion.conditioning import Cond
from txt2img.models.flux import FluxTransformer
from txt2img.weights.layouts.transformer_configs import flux_from_diffusers

TINY = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
    "axes_dims_rope": (4, 4, 8),
}
TIME = torch.tensor([500.0, 250.0])  # whole in float32 after division by 1000


def pair(**more: object) -> tuple[FluxTransformer, FluxTransformer2DModel]:
    """The same network, ours and theirs."""
    theirs = randomise(FluxTransformer2DModel(**TINY, **more))
    ours = FluxTransformer(flux_from_diffusers(config_of(theirs))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(channels: int = 16, size: tuple[int, int] = (6, 10)) -> tuple[Tensor, Cond]:
    """A batch of two latents, and a condition."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, *size, generator=generator)
    tokens = torch.randn(2, 7, 32, generator=generator)
    pooled = torch.randn(2, 24, generator=generator)
    return x, Cond(tokens, pooled, guidance=torch.tensor([3.5, 2.0]))


def ids(height: int, width: int, picture: int = 0) -> Tensor:
    made = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    made[:, 0] = picture
    return made


def packed(x: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(x, *x.shape)


def expected(theirs: FluxTransformer2DModel, cond: Cond, pictures: list[Tensor]) -> Tensor:
    """Their output for the first picture's latents, the others being references."""
    height, width = pictures[0].shape[-2:]
    out = theirs(
        torch.cat([packed(picture) for picture in pictures], 1),
        cond.tokens,
        cond.pooled,
        TIME / 1000,
        torch.cat([ids(*p.shape[-2:], picture=min(n, 1)) for n, p in enumerate(pictures)]),
        torch.zeros(cond.tokens.shape[1], 3),
        cond.guidance if theirs.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    tokens = out[:, : height * width // 4]
    return FluxPipeline._unpack_latents(tokens, height * 8, width * 8, 8)


def miss(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [(6, 10), (8, 4), (2, 2)])
@pytest.mark.parametrize("guidance", [True, False])
@torch.no_grad()
def test_a_pass_equals_diffusers(size: tuple[int, int], guidance: bool) -> None:
    ours, theirs = pair(guidance_embeds=guidance)
    x, cond = inputs(size=size)
    assert miss(ours(x, TIME, cond), expected(theirs, cond, [x])) < 1e-5


@pytest.mark.parametrize("extra", [80, 16])
@torch.no_grad()
def test_fill_and_depth_take_more_channels(extra: int) -> None:
    ours, theirs = pair(guidance_embeds=True, in_channels=4 * (16 + extra), out_channels=64)
    x, cond = inputs(16 + extra)
    cond = Cond(cond.tokens, cond.pooled, None, x[:, 16:], cond.guidance)
    wanted = expected(theirs, cond, [x])
    assert ours.config.extra_channels == extra
    assert miss(ours(x[:, :16], TIME, cond), wanted) < 1e-5


@torch.no_grad()
def test_references_follow_the_latent_as_in_kontext() -> None:
    ours, theirs = pair(guidance_embeds=True)
    x, cond = inputs()
    reference = torch.randn(2, 16, 4, 8, generator=torch.Generator().manual_seed(2))
    with_it = Cond(cond.tokens, cond.pooled, guidance=cond.guidance, references=(reference,))
    got = ours(x, TIME, with_it)
    assert miss(got, expected(theirs, cond, [x, reference])) < 1e-5
    assert miss(got, ours(x, TIME, cond)) > 1e-2


def test_gradients_flow_and_inputs_stay_as_they_are() -> None:
    ours, _ = pair(guidance_embeds=True)
    x, cond = inputs()
    before = x.clone(), cond.tokens.clone()
    with torch.no_grad():
        plain = ours(x, TIME, cond)
    ours.requires_grad_(True)
    out = ours(x, TIME, cond)
    out.square().mean().backward()
    assert miss(plain, out.detach()) < 1e-5
    assert all(parameter.grad is not None for parameter in ours.parameters())
    assert torch.equal(x, before[0]) and torch.equal(cond.tokens, before[1])


@torch.no_grad()
def test_bfloat16_is_no_further_off_than_diffusers() -> None:
    ours, theirs = pair(guidance_embeds=True)
    x, cond = inputs()
    exact = ours(x, TIME, cond)
    small = cond.to(torch.bfloat16)
    wanted = expected(theirs.bfloat16(), small, [x.bfloat16()])
    got = ours.bfloat16()(x.bfloat16(), TIME, small)
    assert got.dtype == torch.bfloat16
    assert miss(got.float(), exact) < 1.5 * miss(wanted.float(), exact)


@torch.no_grad()
def test_rotations_keep_float32_angles_far_from_the_corner() -> None:
    ours, theirs = pair()
    made = ours.rotations(5, [torch.zeros(1, 16, 8, 600)])[:, 0]
    cos, sin = theirs.pos_embed(torch.cat([torch.zeros(5, 3), ids(8, 600)]))
    torch.testing.assert_close(made.real, cos[:, ::2], rtol=0, atol=1e-6)
    torch.testing.assert_close(made.imag, sin[:, ::2], rtol=0, atol=1e-6)
