"""From a request to a picture: the right noise, no picture's bits changed by its neighbours."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.levels import Level
from txt2img.errors import BadOutput, BadRequest, OutOfMemory
from txt2img.models.configs import VAEConfig
from txt2img.pipeline.denoiser import PIECEMEAL, with_oom_fallback
from txt2img.pipeline.generate import Job, batch_key, decode, generate, prepare, sample
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.compat import PromptRules, Rules
from txt2img.system.device.memory import MemoryState
from txt2img.weights.families import SD15
from txt2img.weights.model import AdapterState, Model

LEVEL = Level(1.0, "diffusion")
SMALL = Request(
    "a cat", "", "m", 64, 64, 4, 7.5, sampler=Sampler.EULER_A, schedule=Schedule.LINEAR, seed=42
)


class Net(nn.Module):
    """Predicts noise from the words alone, and counts how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes: list[int] = []
        self.room = 10**9

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError
        self.sizes.append(len(x))
        return torch.tanh(x) * cond.tokens.mean((1, 2))[:, None, None, None]


class Decoder(nn.Module):
    """Enlarges a latent to pixels; `breaks_in` is a dtype that it overflows in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.config = VAEConfig()
        self.breaks_in: list[torch.dtype] = []
        self.room = 10**9
        self.sizes: list[int] = []

    def decode(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError
        pixels = x[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return pixels * (float("nan") if self.weight.dtype in self.breaks_in else 1.0)


class Words:
    """As many chunks as words, each of one token that counts letters."""

    encoders = (nn.Linear(1, 1),)

    def chunk_count(self, prompt: str, rules: PromptRules) -> int:
        return max(len(prompt.split()), 1)

    def encode(self, prompts: list[str], chunks: int, reading: PromptRules) -> Cond:
        rows = [[float(len(w)) for w in p.split()] for p in prompts]
        padded = [row + [0.0] * (chunks - len(row)) for row in rows]
        return Cond(torch.tensor(padded)[..., None])


@pytest.fixture
def mock() -> Model:
    """A model of a few lines."""
    parts: dict[str, object] = {"network": Net(), "vae": Decoder(), "text": Words()}
    parts |= {
        "adapters": AdapterState(),
        "memory": MemoryState(),
        "graphed": None,
        "prompt_cache": {},
    }
    plain = {
        "name": "m",
        "hash": "0" * 10,
        "family": SD15,
        "refiner": None,
        "clips": (),
        "checkpoint": None,
    }
    return cast(Model, SimpleNamespace(**plain, **parts))


def net(model: Model) -> Net:
    """The mock network of a mock model."""
    return cast(Net, model.network)


def vae(model: Model) -> Decoder:
    """The mock VAE of a mock model."""
    return cast(Decoder, model.vae)


def last(job: Job) -> Tensor:
    """The latents after the last step."""
    [state] = deque(job.states(), maxlen=1)
    return state.x


def seeds(*numbers: int) -> list[Request]:
    """The small request with those seeds."""
    return [replace(SMALL, seed=number) for number in numbers]


def test_noise_is_each_pictures_own() -> None:
    # 3 cells wide: not a multiple of 16 numbers, where one draw for a batch would differ
    draw = fresh_noise(seeds(1, 2), Rules(), (4, 3, 3), torch.device("cpu"))
    first, second = draw(), draw()
    alone = fresh_noise(seeds(2), Rules(), (4, 3, 3), torch.device("cpu"))
    assert torch.equal(first[1:], alone())
    assert torch.equal(second[1:], alone())
    expected = torch.randn((4, 3, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(first[0], expected)
    assert first.dtype == torch.float32


def test_states_come_step_by_step_and_can_be_had_again(mock: Model) -> None:
    job = prepare(mock, seeds(1))
    assert [state.step for state in job.states()] == [1, 2, 3, 4]
    assert job.steps == 4
    assert torch.equal(last(job), last(job))


def test_a_picture_starts_as_noise_of_the_first_level(mock: Model) -> None:
    job = prepare(mock, seeds(1))
    seen: list[Tensor] = []
    job = replace(job, denoise=lambda x, level: seen.append(x) or x)
    last(job)
    noise = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(seen[0][0], noise * job.levels[0].sigma)


def test_on_a_cpu_each_picture_is_a_pass_of_its_own(mock: Model) -> None:
    last(prepare(mock, seeds(1, 2, 3)))
    assert set(net(mock).sizes) == {2}


def test_without_guidance_one_pass_is_half(mock: Model) -> None:
    last(prepare(mock, [replace(SMALL, cfg=1.0)]))
    assert set(net(mock).sizes) == {1}


@pytest.mark.parametrize("sampler", Sampler)
def test_bits_do_not_depend_on_the_batch(sd1_model: Model, sampler: Sampler) -> None:
    request = replace(SMALL, steps=3, sampler=sampler)
    requests = [replace(request, seed=1, prompt="a"), replace(request, prompt="b " * 90)]
    if sampler is Sampler.DPM_ADAPTIVE:  # whose steps depend on the picture
        assert batch_key(requests[0]) != batch_key(requests[1])
        return
    together = last(prepare(sd1_model, requests))
    for i in range(2):
        alone = last(prepare(sd1_model, requests[i : i + 1]))
        assert torch.equal(alone[0], together[i])
    if sampler is Sampler.EULER:
        pictures = decode(sd1_model, together, request)
        assert pictures[1].tobytes() == decode(sd1_model, together[1:], request)[0].tobytes()


def test_both_prompts_have_equally_many_chunks(mock: Model) -> None:
    last(prepare(mock, [replace(SMALL, prompt="a", negative="b c d")]))
    last(prepare(mock, [replace(SMALL, prompt="a b c", negative="")]))


def test_pictures_of_another_shape_are_not_mixed(mock: Model) -> None:
    with pytest.raises(AssertionError):
        prepare(mock, [SMALL, replace(SMALL, steps=5)])


def test_a_size_that_the_vae_cannot_make_is_refused(mock: Model) -> None:
    vae(mock).config = VAEConfig(channels=(32,) * 5)
    with pytest.raises(BadRequest, match=r"width must be a multiple of 16, got 72; .* 64 or 80"):
        prepare(mock, [replace(SMALL, width=72)])


def test_eta_reaches_the_sampler(mock: Model) -> None:
    ddim = replace(SMALL, sampler=Sampler.DDIM)
    plain, noisy = (last(prepare(mock, [replace(ddim, eta=eta)])) for eta in (0.0, 1.0))
    assert torch.equal(plain, last(prepare(mock, [ddim])))
    assert not torch.equal(plain, noisy)


def test_short_memory_is_met_with_smaller_passes() -> None:
    calls: list[str] = []

    def fast(x: Tensor, level: Level) -> Tensor:
        calls.append("fast")
        raise torch.OutOfMemoryError

    def slow(x: Tensor, level: Level) -> Tensor:
        calls.append("slow")
        return x

    lines: list[str] = []
    denoise = with_oom_fallback(fast, slow, lines.append)
    for _ in range(2):
        denoise(torch.zeros(1), LEVEL)
    assert calls == ["fast", "slow", "slow"]
    assert lines == [PIECEMEAL]


def test_a_network_short_of_memory_still_draws(mock: Model) -> None:
    expected = last(prepare(mock, seeds(1)))
    net(mock).room = 1
    torch.testing.assert_close(last(prepare(mock, seeds(1))), expected)


def test_no_memory_at_all_is_told(mock: Model) -> None:
    net(mock).room = 0
    with pytest.raises(OutOfMemory, match="64x64 pixels; choose a smaller size"):
        list(sample(mock, seeds(1)))
    vae(mock).room = 0
    with pytest.raises(OutOfMemory, match="decoding"):
        decode(mock, torch.zeros(2, 4, 8, 8), SMALL)


def test_pixels_are_rounded_and_clipped(mock: Model) -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0])[None, :, None, None].expand(1, 4, 1, 1)
    [image] = decode(mock, x, SMALL)
    assert image.getpixel((0, 0)) == (0, 0, 128)
    assert (image.mode, image.size) == ("RGB", (8, 8))


def test_broken_latents_are_no_picture(mock: Model) -> None:
    with pytest.raises(BadOutput, match="smaller --cfg"):  # in float32 already
        decode(mock, torch.full((1, 4, 8, 8), float("nan")), SMALL)


def test_a_decoder_that_overflows_is_asked_again_in_float32(mock: Model) -> None:
    decoder = vae(mock)
    decoder.half()
    decoder.breaks_in = [torch.float16]
    [image] = decode(mock, torch.ones(1, 4, 8, 8), SMALL)
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert decoder.weight.dtype == torch.float16
    decoder.breaks_in = [torch.float16, torch.float32]
    with pytest.raises(BadOutput, match="no picture"):
        decode(mock, torch.ones(1, 4, 8, 8), SMALL)


def test_generate_draws_all_pictures_of_a_request(mock: Model) -> None:
    request = replace(SMALL, count=2)
    first, second = generate(request, mock)
    [alone] = generate(replace(SMALL, seed=43), mock)
    assert isinstance(first, Image.Image)
    assert second.tobytes() == alone.tobytes() != first.tobytes()


def test_generate_fills_what_is_left_open(mock: Model) -> None:
    [image] = generate(Request("a", width=64, steps=1), mock)
    assert image.size == (64, 512)
