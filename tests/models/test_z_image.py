"""Z-Image's transformer against diffusers', with the same random weights."""

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor

from tests.models.test_flux import TIME, miss
from tests.support.transformers import config_of, randomise
from txt2img.diffusion.conditioning import Cond
from txt2img.models.z_image import ZImageTransformer
from txt2img.weights.layouts.transformer_configs import z_image_from_diffusers

TINY = {
    "dim": 96,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 24,
    "axes_dims": [16, 16, 16],
    "axes_lens": [1024, 512, 512],
}


def pair(**more: object) -> tuple[ZImageTransformer, ZImageTransformer2DModel]:
    """The same network, ours and theirs."""
    theirs = randomise(ZImageTransformer2DModel(**TINY | more))
    ours = ZImageTransformer(z_image_from_diffusers(config_of(theirs))).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(size: tuple[int, int] = (6, 10), length: int = 7) -> tuple[Tensor, Cond]:
    """A batch of two latents, and a condition."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, *size, generator=generator)
    return x, Cond(torch.randn(2, length, 24, generator=generator))


def expected(theirs: ZImageTransformer2DModel, x: Tensor, cond: Cond) -> Tensor:
    """Their output as their pipeline uses it: noise is at time 0, and the sign is turned."""
    out = theirs(list(x[:, :, None]), (1000 - TIME) / 1000, list(cond.tokens)).sample
    return -torch.stack(out)[:, :, 0]


# Of text and picture, tokens that fill a multiple of 32 and that do not.
@pytest.mark.parametrize("length", [7, 32, 40])
@pytest.mark.parametrize("size", [(6, 10), (16, 16), (2, 2)])
@torch.no_grad()
def test_a_pass_equals_diffusers(size: tuple[int, int], length: int) -> None:
    ours, theirs = pair()
    x, cond = inputs(size, length)
    assert miss(ours(x, TIME, cond), expected(theirs, x, cond)) < 1e-5


@torch.no_grad()
def test_a_batch_equals_its_pictures_alone() -> None:
    ours, _ = pair()
    x, cond = inputs()
    alone = [ours(x[i : i + 1], TIME[i : i + 1], Cond(cond.tokens[i : i + 1])) for i in (0, 1)]
    assert miss(ours(x, TIME, cond), torch.cat(alone)) < 1e-5


@torch.no_grad()
def test_rotations_have_diffusers_rounded_angles_far_from_the_corner() -> None:
    ours, theirs = pair()
    made = ours.rotations(480, 8, 1000, torch.device("cpu"))[:, 0]
    places = theirs.create_coordinate_grid((1, 4, 500), (481, 0, 0)).flatten(0, 2)
    wanted = theirs.rope_embedder(places)
    torch.testing.assert_close(made[: len(places)], wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def test_bfloat16_is_no_further_off_than_diffusers() -> None:
    ours, theirs = pair()
    x, cond = inputs()
    exact = ours(x, TIME, cond)
    small = cond.to(torch.bfloat16)
    wanted = expected(theirs.bfloat16(), x.bfloat16(), small)
    got = ours.bfloat16()(x.bfloat16(), TIME, small)
    assert got.dtype == torch.bfloat16
    assert miss(got.float(), exact) < 1.5 * miss(wanted.float(), exact)


def test_gradients_flow() -> None:
    ours, _ = pair()
    x, cond = inputs()
    ours(x, TIME, cond).square().mean().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
