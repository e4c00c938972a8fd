"""A picture decoded in tiles is the picture, without seams, in bounded memory."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from txt2img.models.configs import VAEConfig
from txt2img.models.tiling import OVERLAP, TILE, decode_tiled, starts, weights
from txt2img.models.vae import VAE


def enlarge(x: Tensor) -> Tensor:
    """A decoder of single cells, so that tiles cannot change its output."""
    return x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 112, 113, 128, 500])
def test_tiles_cover_all_and_overlap_enough(length: int) -> None:
    begins = starts(length, TILE, OVERLAP)
    assert begins[0] == 0 and begins[-1] == max(length - TILE, 0)
    steps = [b - a for a, b in pairwise(begins)]
    assert all(0 < step <= TILE - OVERLAP for step in steps)


@pytest.mark.parametrize("length", [65, 113, 500])
def test_blending_weights_sum_to_one_and_end_with_the_tile(length: int) -> None:
    begins = starts(length, TILE, OVERLAP)
    shares = weights(begins, length, TILE, 2)
    torch.testing.assert_close(shares.sum(0), torch.ones(2 * length))
    for begin, share in zip(begins, shares, strict=True):
        assert not share[: 2 * begin].any() and not share[2 * (begin + TILE) :].any()


@pytest.mark.parametrize("size", [(70, 65), (150, 20), (20, 150)])
def test_a_decoder_of_single_cells_gives_the_same_in_tiles(size: tuple[int, int]) -> None:
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(decode_tiled(enlarge, x, 8), enlarge(x), rtol=0, atol=1e-6)


def test_no_tile_is_larger_than_asked() -> None:
    sizes: list[torch.Size] = []

    def decode(x: Tensor) -> Tensor:
        sizes.append(x.shape[-2:])
        return enlarge(x)

    decode_tiled(decode, torch.zeros(1, 4, 200, 90), 8)
    assert set(sizes) == {torch.Size((TILE, TILE))}


@torch.inference_mode()
def test_a_vaes_tiles_are_near_the_whole() -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(channels=(8, 8, 16), layers=1, groups=4)).eval()
    x = torch.randn(1, 4, 48, 40)
    whole = vae.decode(x)
    tiled = decode_tiled(vae.decode, x, vae.config.factor, tile=32, overlap=16)
    error = float((tiled - whole).norm() / whole.norm())
    assert tiled.shape == whole.shape
    assert 0 < error < 0.1  # noise is the worst: its parts have unlike means and spreads
    assert torch.equal(decode_tiled(vae.decode, x, 4), whole)
