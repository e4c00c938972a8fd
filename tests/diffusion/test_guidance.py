"""From networks to denoisers: dtypes, conditions, classifier-free guidance."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Predictor, guided, multi_guided, rescaled
from txt2img.diffusion.levels import Diffusion, Flow, Level, betas
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.samplers import SAMPLERS

SD = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
LEVEL = SD.level(400)
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
POSITIVE = Cond(torch.tensor([1.0, 2.0]).reshape(2, 1, 1).expand(2, 7, 3))
NEGATIVE = Cond(torch.tensor([-0.5, 0.25]).reshape(2, 1, 1).expand(2, 7, 3))


class Mock(nn.Module):
    """Gives sin(x · token + time), and remembers what it was called with."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))
        self.calls: list[tuple[Tensor, Tensor, Cond]] = []

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.calls.append((x, time, cond))
        about = cond.tokens.mean((1, 2)).reshape(-1, 1, 1, 1)
        return torch.sin(x * about * self.weight + time.reshape(-1, 1, 1, 1)).to(x.dtype).detach()


def denoiser(network: Mock, scale: float, kind: str = "eps", **more: float | bool):
    """The guided denoiser of a mock network."""
    predict = Predictor(network, SD, PREDICTIONS[kind])
    return guided(predict, lambda _: POSITIVE, lambda _: NEGATIVE, scale, **more)


def test_conditions_join_into_one_batch():
    sizes = torch.ones(2, 6)
    joined = Cond(POSITIVE.tokens, size_ids=sizes).join(Cond(NEGATIVE.tokens, size_ids=2 * sizes))
    torch.testing.assert_close(joined.tokens, torch.cat([POSITIVE.tokens, NEGATIVE.tokens]))
    torch.testing.assert_close(joined.size_ids, torch.cat([sizes, 2 * sizes]))
    assert joined.pooled is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_network_runs_in_its_dtype_and_outputs_become_float32(dtype):
    network = Mock(dtype)
    x0 = Predictor(network, SD, PREDICTIONS["eps"])(X, LEVEL, POSITIVE)
    x, time, cond = network.calls[0]
    assert (x.dtype, time.dtype, cond.tokens.dtype) == (dtype, torch.float32, dtype)
    assert x0.dtype == torch.float32


def test_a_cast_condition_is_the_same_object_each_time():
    network = Mock(torch.bfloat16)
    denoise = denoiser(network, 5.0)
    denoise(X, LEVEL)
    denoise(X, SD.level(100))
    first, second = (cond for _, _, cond in network.calls)
    assert first is second and first.tokens.dtype == torch.bfloat16
    assert POSITIVE.to(torch.float32) is POSITIVE


def test_a_network_gets_the_time_of_each_sample():
    network = Mock()
    Predictor(network, SD, PREDICTIONS["v"])(X, SD.level(123.75), POSITIVE)
    Predictor(network, Flow(), PREDICTIONS["flow"])(X, Level(1.0, "flow"), POSITIVE)
    torch.testing.assert_close(network.calls[0][1], torch.tensor([123.75, 123.75]))
    torch.testing.assert_close(network.calls[1][1], torch.tensor([500.0, 500.0]))


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_guidance_of_outputs_is_guidance_of_pictures(kind):
    predict = Predictor(Mock(), SD, PREDICTIONS[kind])
    towards, away = predict(X, LEVEL, POSITIVE), predict(X, LEVEL, NEGATIVE)
    got = denoiser(Mock(), 7.5, kind)(X, LEVEL)
    torch.testing.assert_close(got, away + 7.5 * (towards - away), rtol=1e-4, atol=1e-4)


def test_one_pass_of_both_with_the_negative_first():
    network = Mock()
    denoiser(network, 7.5)(X, LEVEL)
    [(x, time, cond)] = network.calls
    assert x.shape == (4, 4, 8, 8)
    assert time.shape == (4,)
    torch.testing.assert_close(cond.tokens, torch.cat([NEGATIVE.tokens, POSITIVE.tokens]))


def test_two_passes_when_memory_is_short_give_the_same():
    network = Mock()
    apart = denoiser(network, 7.5, batched=False)(X, LEVEL)
    assert [len(x) for x, _, _ in network.calls] == [2, 2]
    torch.testing.assert_close(apart, denoiser(Mock(), 7.5)(X, LEVEL))


def test_scale_one_evaluates_once_without_the_negative():
    network = Mock()
    got = denoiser(network, 1.0, rescale=0.7)(X, LEVEL)
    assert [len(x) for x, _, _ in network.calls] == [2]
    torch.testing.assert_close(got, Predictor(Mock(), SD, PREDICTIONS["eps"])(X, LEVEL, POSITIVE))


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_equals_diffusers(share):
    towards = 2 * X.flip(0) + 1
    torch.testing.assert_close(rescaled(X, towards, share), rescale_noise_cfg(X, towards, share))


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_guidance_is_rescaled_on_the_output(kind):
    predict = Predictor(Mock(), SD, PREDICTIONS[kind])
    towards, away = predict.output(X, LEVEL, POSITIVE), predict.output(X, LEVEL, NEGATIVE)
    out = rescale_noise_cfg(away + 5 * (towards - away), towards, 0.7)
    want = PREDICTIONS[kind].x0(X, out, LEVEL)
    torch.testing.assert_close(denoiser(Mock(), 5.0, kind, rescale=0.7)(X, LEVEL), want)


def test_conditions_may_change_with_the_level():
    predict = Predictor(Mock(), SD, PREDICTIONS["eps"])
    early = guided(
        predict, lambda at: POSITIVE if at.ratio > 1 else NEGATIVE, lambda _: NEGATIVE, 3
    )
    late = SD.level(10)
    torch.testing.assert_close(early(X, late), predict(X, late, NEGATIVE))
    assert not torch.allclose(early(X, SD.level(900)), predict(X, SD.level(900), NEGATIVE))


OTHER = Cond(torch.tensor([0.75, -1.5]).reshape(2, 1, 1).expand(2, 7, 3))


def several(network: Mock, *parts: tuple[float, Cond], scale: float = 5.0, **more: float | bool):
    """The denoiser of several prompts at once."""
    made = [(weight, lambda _, cond=cond: cond) for weight, cond in parts]
    predict = Predictor(network, SD, PREDICTIONS["eps"])
    return multi_guided(predict, made, lambda _: NEGATIVE, scale, **more)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_several_prompts_are_added_by_their_weights(batched: bool, kind: str) -> None:
    """Liu et al. 2022: away + Σ weight · scale · (towards − away), written out on pictures."""
    predict = Predictor(Mock(), SD, PREDICTIONS[kind])
    away, one, other = (predict(X, LEVEL, cond) for cond in (NEGATIVE, POSITIVE, OTHER))
    want = away + 5 * (0.7 * (one - away) - 0.4 * (other - away))
    parts = [(0.7, lambda _: POSITIVE), (-0.4, lambda _: OTHER)]
    got = multi_guided(predict, parts, lambda _: NEGATIVE, 5.0, batched)(X, LEVEL)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_prompt_twice_is_one_of_both_weights() -> None:
    twice = several(Mock(), (0.5, POSITIVE), (0.7, POSITIVE))(X, LEVEL)
    torch.testing.assert_close(twice, several(Mock(), (1.2, POSITIVE))(X, LEVEL))
    halves = several(Mock(), (0.5, POSITIVE), (0.5, POSITIVE), rescale=0.7)(X, LEVEL)
    torch.testing.assert_close(halves, denoiser(Mock(), 5.0, rescale=0.7)(X, LEVEL))


def test_one_prompt_of_weight_one_takes_no_more_evaluations() -> None:
    network = Mock()
    several(network, (1.0, POSITIVE), scale=1.0)(X, LEVEL)
    assert [len(x) for x, _, _ in network.calls] == [2]
    several(network, (1.0, POSITIVE), (0.0, OTHER))(X, LEVEL)
    assert [len(x) for x, _, _ in network.calls[1:]] == [6]


def test_prompts_of_weight_zero_leave_the_negative() -> None:
    predict = Predictor(Mock(), SD, PREDICTIONS["eps"])
    got = several(Mock(), (0.0, POSITIVE), (0.0, OTHER), rescale=0.5)(X, LEVEL)
    torch.testing.assert_close(got, predict(X, LEVEL, NEGATIVE))


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_cfg_pp_goes_on_by_the_unguided_noise(kind):
    """ComfyUI's sample_euler_cfg_pp, in x as the network sees it; it costs no more than Euler."""
    network, levels = Mock(), [SD.level(time) for time in (700, 400, 100)]
    levels.append(Level(0.0, "diffusion"))
    states = SAMPLERS["euler_cfg++"](denoiser(network, 1.6, kind), X, levels, lambda a, b: X)
    *_, last = states
    assert len(network.calls) == 3
    predict, x = Predictor(Mock(), SD, PREDICTIONS[kind]), X
    for a, b in pairwise(levels):
        away, towards = predict(x, a, NEGATIVE), predict(x, a, POSITIVE)
        noise = (x - a.alpha * away) / a.sigma
        x = b.alpha * (away + 1.6 * (towards - away)) + b.sigma * noise
    torch.testing.assert_close(last.x, x, rtol=1e-4, atol=1e-4)


def test_the_unguided_prediction_takes_a_pass_where_there_was_no_guidance():
    network, level = Mock(), SD.level(300)
    for scale, passes in ((1.0, 2), (3.0, 1)):
        network.calls.clear()
        denoise = denoiser(network, scale)
        denoise(X, level)
        got = denoise(X, replace(level, guided=False))
        assert len(network.calls) == passes
        want = Predictor(Mock(), SD, PREDICTIONS["eps"])(X, level, NEGATIVE)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_another_mix_takes_the_place_of_guidance():
    network = Mock()
    denoise = denoiser(network, 4.0, mix=lambda away, towards, scale, level: away + scale)
    want = Predictor(Mock(), SD, PREDICTIONS["eps"])(X, LEVEL, NEGATIVE) + 4
    torch.testing.assert_close(denoise(X, LEVEL), want, rtol=1e-4, atol=1e-4)
