"""A recorded network gives what the network gives, for each shape; a failure is warned of once."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.pipeline.test_generate import SMALL
from txt2img.diffusion.conditioning import Cond, ImagePrompt
from txt2img.diffusion.deepcache import FeatureCache
from txt2img.models.optimize import cuda_graph
from txt2img.models.optimize.cuda_graph import CudaGraphed, Outputs, Work
from txt2img.pipeline.generate import generate
from txt2img.weights.model import Model


class Net(nn.Module):
    """Mixes all that a network is given, and counts how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.calls += 1
        pooled = 0 if cond.pooled is None else cond.pooled.sum()
        return self.weight * x * time[:, None, None, None] + cond.tokens.sum() + pooled


def recorder(made: list[Work]) -> cuda_graph.Record:
    """Records as a card does: the same memory is read and written at each replay."""

    def record(work: Work) -> tuple[Callable[[], None], Outputs]:
        made.append(work)
        outputs = work()

        def replay() -> None:
            for place, value in zip(outputs, work(), strict=True):
                place.copy_(value)

        return replay, outputs

    return record


def inputs(batch: int, seed: int = 0, pooled: bool = False) -> tuple[Tensor, Tensor, Cond]:
    noise = torch.Generator().manual_seed(seed)
    x, tokens = (
        torch.randn(batch, 4, 2, 2, generator=noise),
        torch.randn(batch, 3, 5, generator=noise),
    )
    whole = torch.ones(batch, 2) if pooled else None
    return x, torch.full((batch,), float(seed)), Cond(tokens, whole)


def test_replays_give_what_the_network_gives_and_keep_it() -> None:
    network, made = Net(), list[Work]()
    graphed = CudaGraphed(network, pytest.fail, recorder(made))
    graphed.drop_stale()
    results = []
    for seed in range(3):
        for batch in (1, 2):
            for pooled in (True, False):
                given = inputs(batch, seed, pooled)
                results.append((graphed(*given), network(*given)))
    assert len(made) == 4  # one a shape
    assert all(torch.equal(found, expected) for found, expected in results)


def test_deepcache_features_go_in_and_out_of_recordings() -> None:
    class Deep(Net):
        def forward(
            self, x: Tensor, time: Tensor, cond: Cond, cache: FeatureCache | None = None
        ) -> Tensor:
            cache = FeatureCache() if cache is None else cache
            cache.features = 3 * x if cache.features is None else cache.features
            return super().forward(x, time, cond) + cache.features

    network, made = Deep(), list[Work]()
    graphed = CudaGraphed(network, pytest.fail, recorder(made))
    for seed in (1, 2):
        ours, own = FeatureCache(), FeatureCache()
        first, second = inputs(1, seed), inputs(1, seed + 5)
        for given in (first, second, first):
            assert torch.equal(graphed(*given, ours), network(*given, own))
            assert ours.features is not None and torch.equal(ours.features, 3 * first[0])
        assert torch.equal(graphed(*second), network(*second))
    assert len(made) == 3  # that makes it, that goes by it, that does neither


def test_weights_changed_in_place_are_seen_and_moved_ones_recorded_again() -> None:
    network, made = Net(), list[Work]()
    graphed = CudaGraphed(network, pytest.fail, recorder(made))
    graphed.drop_stale()
    given = inputs(1, 3)
    graphed(*given)
    with torch.no_grad():
        network.weight.mul_(2)
    graphed.drop_stale()
    assert torch.equal(graphed(*given), network(*given))
    assert len(made) == 1
    network.weight = nn.Parameter(torch.full((), 5.0))
    graphed.drop_stale()
    assert torch.equal(graphed(*given), network(*given))
    assert len(made) == 2


def test_only_some_shapes_are_kept() -> None:
    made = list[Work]()
    graphed = CudaGraphed(Net(), pytest.fail, recorder(made))
    for batch in [*range(1, cuda_graph.MAX_RECORDINGS + 2), cuda_graph.MAX_RECORDINGS + 1, 1]:
        graphed(*inputs(batch))
    assert len(made) == cuda_graph.MAX_RECORDINGS + 2


def test_a_failed_recording_is_warned_of_once_and_the_network_runs_as_it_is() -> None:
    warnings: list[str] = []

    def broken(work: Work) -> tuple[Callable[[], None], Outputs]:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    network = Net()
    graphed = CudaGraphed(network, warnings.append, broken)
    for _ in range(2):
        assert torch.equal(graphed(*inputs(1, 2)), network(*inputs(1, 2)))
    assert warnings == [cuda_graph.NOT_RECORDED.format("operation not permitted")]


def test_without_room_for_a_recording_the_next_shape_is_still_recorded() -> None:
    made = list[Work]()
    inner = recorder(made)

    def narrow(work: Work) -> tuple[Callable[[], None], Outputs]:
        if not made:
            made.append(work)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(work)

    network = Net()
    graphed = CudaGraphed(network, pytest.fail, narrow)
    for _ in range(2):
        assert torch.equal(graphed(*inputs(1, 2)), network(*inputs(1, 2)))
    assert len(made) == 2


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, Exception])
def test_compiling_is_reported_once_a_shape_and_its_failure_once(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda work, dynamic: work)
    network = Net()
    graphed = CudaGraphed(network, warnings.append, compile_cache="a folder")
    for batch in (1, 2, 1):
        assert torch.equal(graphed(*inputs(batch, 1)), network(*inputs(batch, 1)))
    assert len(warnings) == 2 and "a folder" in warnings[0] and " s for this size" in warnings[0]

    def failing(work: Work, dynamic: bool) -> Callable[..., Tensor]:
        def run(*values: Tensor) -> Tensor:
            raise kind("no compiler")

        return run

    monkeypatch.setattr(torch, "compile", failing)
    other = CudaGraphed(network, warnings.append, compile_cache="a folder")
    for batch in (1, 2):
        assert torch.equal(other(*inputs(batch, 1)), network(*inputs(batch, 1)))
    assert warnings[2:] == [cuda_graph.NOT_COMPILED.format("no compiler")]


def test_a_recorded_model_draws_the_same_picture(model: Model) -> None:
    made = list[Work]()
    [plain] = generate(SMALL, model)
    model.graphed = CudaGraphed(model.network, pytest.fail, recorder(made))
    try:
        [graphed] = generate(SMALL, model)
        [other] = generate(replace(SMALL, seed=5), model)
    finally:
        model.graphed = None
    assert graphed.tobytes() == plain.tobytes() != other.tobytes()
    assert len(made) == 1


def test_what_pictures_add_goes_into_recordings() -> None:
    """Residuals, features and image prompts, with masks or without, each kind by itself."""

    class Pictured(Net):
        def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
            out = super().forward(x, time, cond)
            for i, one in enumerate([*cond.residuals, *cond.features, *cond.references], start=2):
                out = out + i * one.sum()
            for i, prompt in enumerate(cond.image_prompts, start=7):
                mask = torch.ones(()) if prompt.mask is None else prompt.mask
                out = out + i * prompt.pairs.sum() * mask.mean()
            return out

    network, made = Pictured(), list[Work]()
    graphed = CudaGraphed(network, pytest.fail, recorder(made))
    one, two, three = (torch.full((1, 2), float(value)) for value in (3, 5, 7))
    masked = ImagePrompt(one, two), ImagePrompt(three)
    kinds: list[dict[str, tuple[object, ...]]] = [
        {},
        {"residuals": (one, two)},
        {"features": (one, two)},
        {"residuals": (one,), "features": (two,), "references": (three,)},
        {"image_prompts": (ImagePrompt(one), ImagePrompt(two))},
        {"image_prompts": masked},
        {"image_prompts": masked, "features": (three,)},
    ]
    for kind in kinds:
        for seed in range(2):
            x, time, cond = inputs(1, seed)
            cond = replace(cond, **kind)
            assert torch.equal(graphed(x, time, cond), network(x, time, cond))
    assert len(made) == len(kinds)
