"""Projected guidance and dynamic thresholding, against the peers' formulas in float64."""

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor

from txt2img.diffusion.guidance_methods import DynamicThresholding, ProjectedGuidance
from txt2img.diffusion.levels import Level


def pair(seed: int) -> tuple[Tensor, Tensor]:
    """x0 for a negative and for a prompt, (B, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    away, towards = torch.randn(2, 3, 4, 6, 5, generator=generator, dtype=torch.float64)
    return away, 2 * towards


PAIRS = [pair(seed) for seed in range(4)]
LEVELS = [Level(ratio, "diffusion") for ratio in (9.0, 3.0, 1.0, 0.2)]


@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.3])
@pytest.mark.parametrize(("eta", "threshold"), [(0.0, 15.0), (1.0, 0.0), (0.4, 2.5)])
def test_projected_guidance_equals_diffusers_and_comfyui(eta, threshold, momentum):
    """diffusers' original formulation is the prompt plus scale times the update, as ComfyUI's."""
    paper, comfyui = (ProjectedGuidance(eta, threshold, momentum, as_comfy) for as_comfy in (0, 1))
    buffer = MomentumBuffer(momentum) if momentum else None
    for (away, towards), level in zip(PAIRS, LEVELS, strict=True):
        want = normalized_guidance(towards, away, 6.5, buffer, eta, threshold, True)
        torch.testing.assert_close(comfyui(away, towards, 6.5, level), want, rtol=1e-12, atol=1e-12)
        got = paper(away, towards, 7.5, level)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_without_projection_it_is_classifier_free_guidance():
    away, towards = PAIRS[0]
    got = ProjectedGuidance(1.0, 0.0, 0.0)(away, towards, 7.5, LEVELS[0])
    torch.testing.assert_close(got, away + 7.5 * (towards - away))


def test_the_momentum_ends_with_a_picture():
    away, towards = PAIRS[0]
    guidance = ProjectedGuidance(0.0, 0.0, -0.5)
    first = guidance(away, towards, 5.0, LEVELS[0])
    assert not torch.equal(guidance(away, towards, 5.0, LEVELS[3]), first)
    torch.testing.assert_close(guidance(away, towards, 5.0, LEVELS[0]), first)


@pytest.mark.parametrize("percentile", [1.0, 0.9])
def test_dynamic_thresholding_equals_the_extension(percentile):
    """sd-dynamic-thresholding's dynthresh, each feature channel apart, from MEAN, by AD."""
    away, towards = PAIRS[1]
    got = DynamicThresholding(4.0, percentile)(away, towards, 20.0, LEVELS[0])
    for image in range(3):
        for channel in range(4):
            a, t = away[image, channel].flatten(), towards[image, channel].flatten()
            mimic, cfg = a + (t - a) * 4.0, a + (t - a) * 20.0
            middle, top = cfg.mean(), (mimic - mimic.mean()).abs().max()
            most = max(top, torch.quantile((cfg - middle).abs(), percentile))
            want = (cfg - middle).clamp(-most, most) / most * top + middle
            torch.testing.assert_close(got[image, channel].flatten(), want)
