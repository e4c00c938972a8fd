"""Token merging: which tokens are merged, how they attend, and that equal ones lose nothing."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.pipeline.test_generate import SMALL
from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import UNetConfig
from txt2img.models.layers import Attention, attention
from txt2img.models.optimize.cpu import CpuPlan, optimize
from txt2img.models.optimize.token_merging import merge
from txt2img.models.unet import UNet
from txt2img.pipeline.generate import sample
from txt2img.request import Request, Sampler
from txt2img.weights.model import Model


def test_the_most_similar_token_is_merged() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 0.2], [-1.0, 0.0]]])  # a map of 2×2
    merged = merge(x, 2, 2, 0.25)
    expected = torch.tensor([[[1.5, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    torch.testing.assert_close(merged.tokens, expected)
    assert merged.counts.tolist() == [[2, 1, 1]]
    assert merged.positions.tolist() == [[0, 1, 0, 2]]
    back = merged.unmerge(torch.tensor([[[5.0], [6.0], [7.0]]]))
    assert back.flatten().tolist() == [5, 6, 5, 7]


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 7), (2, 2)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_every_token_is_in_exactly_one_merged_token(height: int, width: int, ratio: float) -> None:
    x = torch.randn(2, height * width, 6, generator=torch.Generator().manual_seed(1))
    merged = merge(x, height, width, ratio)
    stays = -(-height // 2) * -(-width // 2)
    left = max(height * width - int(height * width * ratio), stays)
    assert merged.tokens.shape == (2, left, 6)
    counts = torch.stack([row.bincount(minlength=left) for row in merged.positions])
    assert torch.equal(counts.float(), merged.counts)
    sums = torch.zeros(2, left, 6).scatter_add_(1, merged.positions[..., None].expand(x.shape), x)
    torch.testing.assert_close(merged.tokens, sums / merged.counts[..., None])


def test_rows_of_a_batch_are_merged_independently() -> None:
    x = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(1))
    whole = merge(x, 4, 4, 0.5)
    for row in range(3):
        alone = merge(x[row : row + 1], 4, 4, 0.5)
        assert torch.equal(alone.positions[0], whole.positions[row])
        torch.testing.assert_close(alone.tokens[0], whole.tokens[row])


def test_a_token_of_count_two_attends_as_two() -> None:
    draw = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, 1, 4, 6, generator=draw)
    counts = torch.tensor([[1.0, 3.0, 1.0, 2.0]])
    again = torch.tensor([0, 1, 1, 1, 2, 3, 3])
    torch.testing.assert_close(
        attention(q, k, v, 2, counts), attention(q, k[:, again], v[:, again], 2)
    )


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_equal_tokens_lose_nothing(ratio: float) -> None:
    torch.manual_seed(1)
    cells = torch.randn(1, 2, 2, 8)  # four cells of four equal tokens each
    x = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    layer = Attention(8, 8, 2)
    merged = merge(x, 4, 4, ratio)
    assert merged.tokens.shape[1] == 16 - int(16 * ratio)
    torch.testing.assert_close(
        merged.unmerge(layer(merged.tokens, counts=merged.counts)), layer(x), atol=1e-6, rtol=1e-5
    )


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(2)
    return UNet(
        UNetConfig(
            channels=(32, 32, 32),
            layers=1,
            attention=(False, True, True),
            depth=(1, 1, 1),
            heads=(2, 2, 2),
            cross_dim=8,
        )
    ).eval()


@torch.inference_mode()
def test_the_largest_maps_with_attention_are_merged_until_reset(unet: UNet) -> None:
    x, time = torch.randn(1, 4, 16, 16), torch.tensor([500.0])
    cond, sizes = Cond(torch.randn(2, 3, 8)), list[int]()

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        sizes.append(given[0].shape[1])

    for name, module in unet.named_modules():
        if name.endswith("attn1"):
            module.register_forward_pre_hook(note)
    plain = unet(x, time, cond)
    assert sizes == [64, 16, 16, 16, 16, 64, 64]
    sizes.clear()
    unet.merge_tokens(0.5)
    merged = unet(x, time, cond)
    assert sizes == [32, 16, 16, 16, 16, 32, 32]
    assert not torch.allclose(merged, plain, atol=1e-4)
    optimize(unet, CpuPlan(evaluations=30), token_merging=0.5)
    torch.testing.assert_close(unet(x, time, cond), merged, atol=1e-4, rtol=0)
    optimize(unet)
    assert torch.equal(unet(x, time, cond), plain)


def latents(model: Model, *requests: Request) -> Tensor:
    """The latents (B, C, h, w) after the last step."""
    [state] = deque(sample(model, requests), maxlen=1)
    return state.x


def test_one_picture_is_drawn_with_it_and_the_next_without(sd1_model: Model) -> None:
    request = replace(SMALL, sampler=Sampler.EULER)
    plain = latents(sd1_model, request)
    both = [replace(request, token_merging=0.5, seed=seed) for seed in (request.seed, 2)]
    together = latents(sd1_model, *both)
    assert not torch.allclose(together[:1], plain)
    assert torch.equal(latents(sd1_model, both[1]), together[1:])
    assert torch.equal(latents(sd1_model, request), plain)
    assert torch.equal(latents(sd1_model, replace(request, token_merging=0.0)), plain)
