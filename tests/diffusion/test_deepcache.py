"""DeepCache: when features are recomputed, for which evaluations, and what that gives."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import Command
from tests.pipeline.test_generate import SMALL
from txt2img.cli.shell_line import command_line
from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.deepcache import DeepCache, FeatureCache
from txt2img.diffusion.levels import Diffusion, Level, betas
from txt2img.errors import BadRequest
from txt2img.images import image_file
from txt2img.images.metadata.a1111 import describe, parse, to_request
from txt2img.models.configs import UNetConfig
from txt2img.models.layers import swish, time_features
from txt2img.models.optimize.cpu import CpuPlan, optimize
from txt2img.models.unet import UNet
from txt2img.pipeline.estimates import history
from txt2img.pipeline.generate import prepare, sample
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler
from txt2img.request.fields import FIELDS
from txt2img.request.interval import Interval
from txt2img.request.prompt_line import from_line
from txt2img.weights.model import Model

PROCESS = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
LEVELS = [*(PROCESS.level(time) for time in (900, 700, 500, 300, 100)), Level(0.0, "diffusion")]
CONFIGS = {
    "attention below": ((64, 64), (False, True), "full"),
    "attention above": ((64, 64), (True, False), "residual"),
    "one level": ((64,), (True,), "none"),
}


def unet(channels: tuple[int, ...], attention: tuple[bool, ...], middle: str) -> UNet:
    """A network of random weights."""
    torch.manual_seed(2)
    same = {"depth": (1,) * len(channels), "heads": (2,) * len(channels)}
    return UNet(
        UNetConfig(
            channels=channels, layers=1, attention=attention, cross_dim=8, middle=middle, **same
        )
    ).eval()


def recomputed(deepcache: DeepCache, levels: Sequence[Level], cond: Cond) -> list[bool]:
    """Whether each evaluation recomputes the features."""
    anew = []
    for level in levels:
        cache = deepcache.at(level, cond)
        anew.append(cache.features is None)
        cache.features = torch.zeros(1) if cache.features is None else cache.features
    return anew


def test_features_are_recomputed_every_n_steps() -> None:
    cond = Cond(torch.zeros(1, 1, 1))
    assert recomputed(DeepCache(2, LEVELS), LEVELS[:-1], cond) == [True, False, True, False, True]
    assert recomputed(DeepCache(3, LEVELS), LEVELS[:-1], cond) == [True, False, False, True, False]
    assert recomputed(DeepCache(1, LEVELS), LEVELS[:-1], cond) == [True] * 5


def test_a_second_evaluation_in_a_step_and_a_second_run() -> None:
    cond, reuse = Cond(torch.zeros(1, 1, 1)), DeepCache(2, LEVELS)
    halfway = PROCESS.level(800)
    assert recomputed(reuse, [LEVELS[0], halfway, LEVELS[1], LEVELS[2]], cond) == [1, 0, 0, 1]
    assert recomputed(reuse, LEVELS[:2], cond) == [True, False]


def test_each_condition_has_its_own_features() -> None:
    reuse = DeepCache(3, LEVELS)
    one, other = Cond(torch.zeros(1, 1, 1)), Cond(torch.ones(1, 1, 1))
    assert recomputed(reuse, LEVELS[:1], one) == [True]
    assert recomputed(reuse, LEVELS[1:3], other) == [True, False]
    assert recomputed(reuse, LEVELS[2:4], one) == [False, True]
    assert recomputed(reuse, LEVELS[3:5], other) == [False, True]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("plan", [None, CpuPlan(evaluations=30)])
@torch.inference_mode()
def test_with_cached_features_only_the_first_convolution_and_last_layer_run(
    name: str, plan: CpuPlan | None
) -> None:
    network = unet(*CONFIGS[name])
    optimize(network, plan)
    before, x = torch.randn(2, 1, 4, 8, 8)
    tokens = torch.randn(2, 5, 8)  # a pair's, of one picture
    early, time, cond, cache = (
        torch.tensor([900.0]),
        torch.tensor([500.0]),
        Cond(tokens),
        FeatureCache(),
    )
    seen: list[Tensor] = []
    last = network.up_blocks[-1]
    hook = last.resnets[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain = network(before, early, cond)
    assert torch.equal(network(before, early, cond, cache), plain)
    hook.remove()

    found = network(x, time, cond, cache)
    start = network.conv_in(x)
    below = seen[-1][:, : -start.shape[1]]  # without the first convolution's output
    rows = len(below)
    clock = network.time_embedding(time_features(time, 64))
    h = last.resnets[-1](torch.cat([below, start.expand(rows, -1, -1, -1)], dim=1), clock)
    if last.attentions is not None:
        h = last.attentions[-1](h, tokens)
    by_hand = network.conv_out(swish(network.conv_norm_out(h)))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=0)
    assert not torch.allclose(found, network(x, time, cond), atol=1e-4)


def latents(model: Model, *requests: Request) -> Tensor:
    """The latents (B, C, h, w) after the last step."""
    [state] = deque(sample(model, requests), maxlen=1)
    return state.x


def counted(
    model: Model, request: Request, monkeypatch: pytest.MonkeyPatch, method: str = "deep_features"
) -> list[int]:
    """How many rows a method of the network computed, each time; its last argument has them."""
    rows, own = list[int](), getattr(UNet, method)

    def noted(
        self: UNet, x: Tensor, time: Tensor, texts: Tensor | Cond, *cache: FeatureCache
    ) -> Tensor:
        rows.append(len(texts.tokens if isinstance(texts, Cond) else texts))
        out: Tensor = own(self, x, time, texts, *cache)
        return out

    monkeypatch.setattr(UNet, method, noted)
    latents(model, request)
    monkeypatch.undo()
    return rows


def test_the_latents_equal_steps_by_hand(sd1_model: Model) -> None:
    request = replace(SMALL, sampler=Sampler.EULER, cfg=7.0, reuse=2)
    job = prepare(sd1_model, [replace(request, reuse=1)])
    found, network = latents(sd1_model, request), sd1_model.network
    [positive, negative] = (course[0][1] for course in sd1_model.prompt_cache.popitem()[1])
    x = job.noise_scale * fresh_noise([request], job.rules, job.latent, job.device)()
    pair, process, cache = negative.join(positive), sd1_model.family.process.build(), FeatureCache()
    with torch.inference_mode():
        for step, (a, b) in enumerate(zip(job.levels, job.levels[1:], strict=False)):
            cache = FeatureCache() if step % 2 == 0 else cache
            away, towards = network(x, torch.tensor([process.time(a)]), pair, cache).chunk(2)
            eps = away + 7.0 * (towards - away)
            x = b.alpha * (x - a.sigma * eps) / a.alpha + b.sigma * eps
    torch.testing.assert_close(found, x, atol=2e-3, rtol=1e-3)
    plain = latents(sd1_model, replace(request, reuse=1))
    assert not torch.allclose(plain, found, atol=1e-2)


def test_recomputing_every_step_is_the_plain_picture(sd1_model: Model) -> None:
    assert torch.equal(latents(sd1_model, replace(SMALL, reuse=1)), latents(sd1_model, SMALL))


@pytest.mark.parametrize("more", [{}, {"cfg": 1.0}, {"sampler": Sampler.HEUN}])
def test_bits_do_not_depend_on_the_batch(sd1_model: Model, more: dict[str, object]) -> None:
    request = replace(SMALL, reuse=3, steps=5, **more)
    both = [replace(request, seed=1), replace(request, seed=2)]  # of one prompt
    together = latents(sd1_model, *both)
    for expected, found in zip(both, together, strict=True):
        assert torch.equal(latents(sd1_model, expected)[0], found)


@pytest.mark.parametrize(
    ("more", "rows"),
    [
        ({"reuse": 1}, [2, 2, 2, 2]),
        ({"reuse": 2}, [2, 2]),
        ({"reuse": 4}, [2]),
        ({"reuse": 2, "cfg": 1.0}, [1, 1]),
        ({"reuse": 4, "cfg_interval": Interval(0, 0.5)}, [2, 1]),  # then it is of a pair no more
        ({"reuse": 4, "prompt": "[a|b]"}, [2, 2]),  # each prompt its own
        ({"reuse": 3, "prompt": "a AND b"}, [3, 3]),
    ],
)
def test_deep_layers_are_skipped(
    sd1_model: Model, more: dict[str, object], rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(SMALL, sampler=Sampler.EULER, **more)
    assert counted(sd1_model, request, monkeypatch) == rows


@pytest.mark.parametrize(
    "more",
    [
        {"reuse": 1},
        {"reuse": 2},
        {"reuse": 3},
        {"reuse": 2, "cfg": 1.0},
        {"reuse": 1, "cfg_interval": Interval(0.25, 1)},
        {"reuse": 4, "cfg_interval": Interval(0, 0.5)},
        {"reuse": 2, "sampler": Sampler.HEUN},
        {"reuse": 1, "sampler": Sampler.DPMPP_SDE},
        {"reuse": 3, "sampler": Sampler.DPMPP_SDE},
        {"reuse": 2, "prompt": "a AND b", "cfg_interval": Interval(0, 0.5)},
    ],
)
def test_estimates_count_deep_and_shallow_evaluations(
    sd1_model: Model, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(SMALL, **({"sampler": Sampler.EULER} | more))
    evaluations = sum(counted(sd1_model, request, monkeypatch, "forward"))
    deep = sum(counted(sd1_model, request, monkeypatch))
    assert history.evaluations(request) == pytest.approx(
        deep + history.CACHED_COST * (evaluations - deep)
    )


def test_it_is_part_of_a_requests_record() -> None:
    made = from_line("x --deepcache 3 --token-merging 0.5", Request(""))
    assert (made.reuse, made.token_merging) == (3, 0.5)
    assert Request.from_json(made.to_json()) == made
    text = str(describe(made, "m", "0", "1"))
    assert "Deep reuse: 3" in text and "Token merging: 0.5" in text
    again = to_request(parse(text))[0]
    assert (again.reuse, again.token_merging) == (3, 0.5)
    assert "--deepcache 3 --token-merging 0.5" in command_line(made)
    plain = from_line("x --deepcache 1 --token-merging 0", made)
    assert plain == Request("x")
    assert not {"reuse", "token_merging"} & set(plain.to_json())


@pytest.mark.parametrize(
    "values",
    [
        *({"reuse": value} for value in (0, 101, -1, 2.5, "x", None, True)),
        *({"token_merging": value} for value in (0.76, -0.1, "x", None, True, float("nan"))),
        {"count": None},
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, object]) -> None:
    [name] = values
    with pytest.raises(BadRequest, match=f"{name}|{FIELDS[name].label}"):
        Request.from_json({"prompt": "x", **values})


def test_pictures_record_it_and_are_replayed(draw: Command) -> None:
    options = ("--deepcache", "2", "--token-merging", "0.25", "--seed", "1", "-q")
    assert draw("a cat", *options, "--low-memory", "-o", "a.png").code == 0
    found = image_file.read(image_file.Path("a.png")).request
    assert found is not None and (found.reuse, found.token_merging) == (2, 0.25)
    assert draw("a cat", "--seed", "1", "-q", "-o", "b.png").code == 0
    assert (
        image_file.read(image_file.Path("b.png")).pixels_sha256
        != image_file.read(image_file.Path("a.png")).pixels_sha256
    )
    assert draw("--params-from", "a.png", "--low-memory", "-q", "-o", "c.png").code == 0
    with open("a.png", "rb") as a, open("c.png", "rb") as c:
        assert a.read() == c.read()
    bad = draw("a cat", "--deepcache", "0")
    assert bad.code == 2 and "deepcache must be 1 … 100, got 0" in bad.err
