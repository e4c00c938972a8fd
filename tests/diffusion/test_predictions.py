"""Prediction types: eps, v and flow."""

import math

import pytest
import torch

from txt2img.diffusion.levels import Level
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.errors import BadRequest

X0, NOISE = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("ratio", [0.0, 0.03, 1.0, 14.6])
@pytest.mark.parametrize(
    ("kind", "curve"), [("eps", "diffusion"), ("v", "diffusion"), ("eps", "flow"), ("flow", "flow")]
)
def test_the_target_means_the_picture(kind, curve, ratio):
    level, prediction = Level(ratio, curve), PREDICTIONS[kind]
    x = level.alpha * X0 + level.sigma * NOISE
    torch.testing.assert_close(prediction.x0(x, prediction.target(X0, NOISE, level), level), X0)


def test_targets_are_what_the_papers_say():
    level = Level(0.75, "diffusion")  # alpha 0.8, sigma 0.6
    torch.testing.assert_close(PREDICTIONS["eps"].target(X0, NOISE, level), NOISE)
    torch.testing.assert_close(PREDICTIONS["v"].target(X0, NOISE, level), 0.8 * NOISE - 0.6 * X0)
    torch.testing.assert_close(PREDICTIONS["flow"].target(X0, NOISE, level), NOISE - X0)


@pytest.mark.parametrize(("kind", "curve"), [("v", "diffusion"), ("flow", "flow")])
def test_v_and_flow_predict_a_picture_at_pure_noise(kind, curve):
    level, prediction = Level(math.inf, curve), PREDICTIONS[kind]
    out = prediction.target(X0, NOISE, level)
    torch.testing.assert_close(prediction.x0(NOISE, out, level), X0)


def test_eps_is_refused_at_pure_noise():
    with pytest.raises(BadRequest, match="pure noise"):
        PREDICTIONS["eps"].x0(NOISE, NOISE, Level(math.inf, "diffusion"))
