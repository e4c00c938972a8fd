"""Other programs' rules, against diffusers' own pipeline and formulas written out."""

from collections import deque
from dataclasses import replace
from itertools import islice

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
)
from torch import Tensor
from transformers import CLIPTokenizer

from tests.support import tiny
from txt2img.diffusion.conditioning import Cond, over_time
from txt2img.diffusion.guidance import Predictor
from txt2img.diffusion.levels import Diffusion, Level, betas
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.rng import noise_source
from txt2img.errors import BadRequest
from txt2img.pipeline.denoiser import equal_length_runs
from txt2img.pipeline.encode_prompts import encode
from txt2img.pipeline.generate import noise_levels, prepare
from txt2img.pipeline.noise import image_noise
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.compat import Steps, rules, steps_of
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

SD = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
ASKED = Request(
    *("a (red:1.3) apple", "blurry"),
    width=128,
    height=128,
    steps=4,
    cfg=5.0,
    schedule=Schedule.LEADING,
    seed=7,
    compat=Compat.DIFFUSERS,
)


def ours() -> Model:
    return load(str(tiny.sd1().folder), Device(torch.device("cpu"), torch.float32))


def last(request: Request) -> Tensor:
    """The latents of our last step."""
    [state] = deque(prepare(ours(), [request]).states(), maxlen=1)
    return state.x


def of_diffusers(scheduler: SchedulerMixin, clip_skip: int | None = None) -> Tensor:
    """The latents of diffusers' own pipeline."""
    model = tiny.sd1()
    pipe = StableDiffusionPipeline(
        model.vae,
        model.text,
        CLIPTokenizer.from_pretrained(model.folder / "tokenizer"),
        model.unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # Where diffusers still looks for the last norm, transformers no longer has it.
    object.__setattr__(model.text, "text_model", model.text)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        ASKED.prompt,
        ASKED.height,
        ASKED.width,
        num_inference_steps=4,
        guidance_scale=5.0,
        negative_prompt=ASKED.negative,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
        clip_skip=clip_skip,
    ).images


CASES: list[tuple[Sampler, type[SchedulerMixin], dict[str, object]]] = [
    (Sampler.DDIM, DDIMScheduler, {"set_alpha_to_one": True}),
    (Sampler.EULER, EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    (Sampler.EULER, EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    (Sampler.EULER_A, EulerAncestralDiscreteScheduler, {"timestep_spacing": "leading"}),
    (Sampler.DPMPP_2M, DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
]


@pytest.mark.parametrize(("sampler", "theirs", "more"), CASES)
def test_diffusers_pipeline_is_equalled(
    sampler: Sampler, theirs: type[SchedulerMixin], more: dict[str, object]
) -> None:
    schedule = Schedule.LEADING
    if "use_karras_sigmas" in more:
        schedule = Schedule.KARRAS
    elif more.get("timestep_spacing") == "linspace":
        schedule = Schedule.LINEAR
    scheduler = theirs.from_config({**tiny.sd1().scheduler, **more})
    got = last(replace(ASKED, sampler=sampler, schedule=schedule))
    wanted = of_diffusers(scheduler)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_diffusers_clip_skip_counts_one_less() -> None:
    scheduler = DDIMScheduler.from_config({**tiny.sd1().scheduler, "set_alpha_to_one": True})
    wanted = of_diffusers(scheduler, clip_skip=1)
    got = last(replace(ASKED, sampler=Sampler.DDIM, clip_skip=2))
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("compat", "sampler", "unit"),
    [
        (None, Sampler.DDIM, False),
        (Compat.A1111, Sampler.EULER, False),
        (Compat.A1111, Sampler.DDIM, True),
        (Compat.COMFYUI, Sampler.EULER, True),
        (Compat.SDCPP, Sampler.EULER, False),
    ],
)
def test_the_first_noise_is_as_strong_as_theirs(
    compat: Compat | None, sampler: Sampler, unit: bool
) -> None:
    request = replace(ASKED, compat=compat, sampler=sampler, schedule=Schedule.KARRAS)
    job = prepare(ours(), [request])
    top = SD.ratios[-1]
    # k-diffusion's x = noise·σ is ours times √(1 + σ²); noise·√(1 + σ²) is noise
    wanted = 1.0 if unit else job.levels[0].sigma
    assert job.noise_scale == pytest.approx(wanted)
    if sampler is Sampler.EULER:
        assert job.levels[0].ratio == pytest.approx(top, rel=1e-3)


def test_a1111_ddim_ends_at_the_tables_second_entry() -> None:
    request = replace(ASKED, compat=Compat.A1111, sampler=Sampler.DDIM)
    for steps, calls in ((20, 19), (30, 30)):  # len(range(0, 1000, 1000 // steps)) - 1
        levels = noise_levels(ours(), replace(request, steps=steps), rules(request))
        assert len(levels) - 1 == calls
        assert levels[-1].ratio == pytest.approx(SD.ratios[1])


def test_comfyui_leaves_out_unipcs_last_but_one_level() -> None:
    request = replace(ASKED, compat=Compat.COMFYUI, sampler=Sampler.UNIPC, schedule=Schedule.KARRAS)
    plain = replace(request, compat=None, steps=5)
    more = noise_levels(ours(), plain, rules(plain))
    assert noise_levels(ours(), request, rules(request)) == [*more[:4], more[-1]]


def test_whole_times_are_the_nearest() -> None:
    times: list[float] = []

    class Net(torch.nn.Linear):
        def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
            times.append(float(time[0]))
            return x

    x, cond = torch.zeros(1, 4, 8, 8), Cond(torch.zeros(1, 1, 1))
    for whole in (False, True):
        Predictor(Net(1, 1), SD, PREDICTIONS["eps"], whole)(x, SD.level(400.4), cond)
    assert times == [pytest.approx(400.4, abs=1e-3), 400.0]


def test_a_prompt_changes_after_its_step_and_in_a1111_one_later() -> None:
    levels = [Level(float(ratio), "diffusion") for ratio in range(10, -1, -1)]
    first, second = Cond(torch.zeros(1)), Cond(torch.ones(1))
    course = [(5, first), (10, second)]
    for late, calls in ((False, 5), (True, 6)):
        at = over_time(course, levels, late)
        assert [at(level) is first for level in levels[:-1]] == [True] * calls + [False] * (
            10 - calls
        )
    assert over_time(course, levels)(Level(5.5, "diffusion")) is first


def test_a_changing_prompt_draws_with_each_text_in_turn() -> None:
    plain = replace(ASKED, compat=None, sampler=Sampler.EULER, prompt="cat")
    edited = last(replace(plain, prompt="[cat:dog:0.5]"))
    assert not torch.allclose(edited, last(plain))
    assert not torch.allclose(edited, last(replace(plain, prompt="dog")))
    assert torch.equal(last(replace(plain, prompt="[cat:dog:1.0]")), last(plain))


def test_and_draws_several_prompts_as_one() -> None:
    plain = replace(ASKED, compat=None, sampler=Sampler.EULER, prompt="cat")
    twice = last(replace(plain, prompt="cat AND cat", cfg=2.5))
    assert torch.allclose(twice, last(replace(plain, cfg=5.0)), atol=1e-4)
    both = last(replace(plain, prompt="cat AND dog :0.5"))
    assert not torch.allclose(both, last(plain), atol=1e-3)
    # to those who do not know it, it is a word
    assert torch.equal(
        last(replace(plain, prompt="cat AND", compat=Compat.SDCPP)),
        last(replace(plain, prompt="cat and", compat=Compat.SDCPP)),
    )


def test_a1111_weighs_a_prompt_by_the_number_at_its_end() -> None:
    a1111 = replace(ASKED, compat=Compat.A1111, sampler=Sampler.EULER)
    weighed = last(replace(a1111, prompt="cat :0.5", cfg=4.0))
    assert torch.allclose(weighed, last(replace(a1111, prompt="cat", cfg=2.0)), atol=1e-4)


LONG = " ".join(["cat"] * 100)  # two chunks


@pytest.mark.parametrize("compat", [Compat.A1111, Compat.FORGE, Compat.COMFYUI, Compat.SDCPP])
def test_a_short_prompt_beside_a_long_one_stays_short(compat: Compat) -> None:
    model = ours()
    asked = replace(ASKED, prompt=LONG, negative="dog", compat=compat, sampler=Sampler.EULER)
    [(_, wanted)], [(_, unwanted)] = encode(model, asked, rules(asked))
    alone = model.text.encode(["dog"], 1, rules(asked).prompt)
    assert wanted.tokens.shape[1] == 2 * unwanted.tokens.shape[1]
    assert torch.allclose(unwanted.tokens, alone.tokens, atol=1e-6)
    # What is repeated as a whole is heard as once: so both fit into one pass, as in ComfyUI.
    [state] = deque(prepare(model, [asked]).states(), maxlen=1)
    model.prompt_cache = {
        key: (course, [(until, replace(c, tokens=c.tokens.repeat(1, 2, 1))) for until, c in other])
        for key, (course, other) in model.prompt_cache.items()
    }
    [repeated] = deque(prepare(model, [asked]).states(), maxlen=1)
    assert torch.allclose(state.x, repeated.x, atol=1e-4)
    ours_alone = replace(asked, compat=None)
    [(_, wanted)], [(_, unwanted)] = encode(model, ours_alone, rules(ours_alone))
    assert wanted.tokens.shape == unwanted.tokens.shape  # by our own rules it ends in empty chunks


def test_a1111_makes_parts_of_a_prompt_equally_long_by_their_last_token() -> None:
    model = ours()
    asked = replace(ASKED, prompt=f"dog AND {LONG} AND [dog:{LONG}:2]", compat=Compat.A1111)
    [(_, short)], [(_, long)], [(_, first), (_, then)], [(_, unwanted)] = encode(
        model, asked, rules(asked)
    )
    length = unwanted.tokens.shape[1]
    alone = model.text.encode(["dog"], 1, rules(asked).prompt).tokens
    assert torch.allclose(short.tokens[:, :length], alone, atol=1e-6)
    assert torch.equal(
        short.tokens[:, length:], short.tokens[:, length - 1 : length].expand(-1, length, -1)
    )
    assert long.tokens.shape == first.tokens.shape == then.tokens.shape == short.tokens.shape
    # Texts that a part changes between are of one batch there: the short one gets empty chunks.
    empty = model.text.encode(["dog"], 2, rules(asked).prompt).tokens
    assert torch.allclose(first.tokens, empty, atol=1e-6)


def test_pictures_of_unequal_prompts_are_drawn_side_by_side_as_alone() -> None:
    model = ours()
    asked = [
        replace(ASKED, prompt=prompt, negative=negative, compat=Compat.A1111, sampler=Sampler.EULER)
        for prompt, negative in ((LONG, "dog"), ("cat", LONG), ("cat", "dog"))
    ]
    [together] = deque(prepare(model, asked).states(), maxlen=1)
    conds = [encode(model, request, rules(request)) for request in [*asked, asked[2]]]
    assert equal_length_runs(conds, [[1.0]] * 4) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    for i, request in enumerate(asked):
        [alone] = deque(prepare(model, [request]).states(), maxlen=1)
        assert torch.allclose(together.x[i], alone.x[0], atol=1e-5)


@pytest.mark.parametrize(
    ("rng", "first", "then"),
    [
        ("cpu", "cpu", "cpu"),
        ("nv:7", "nv:7", "nv:7"),
        ("cpu,nv", "cpu", "nv"),
        ("nv,cpu", "nv", "cpu"),
    ],
)
def test_the_steps_noise_may_have_a_source_of_its_own(rng: str, first: str, then: str) -> None:
    latent = (4, 8, 8)
    request = Request("x", seed=5, rng=rng)
    start, step = islice(image_noise(request, rules(request), latent), 2)
    one = noise_source(first, 5, latent)
    assert torch.equal(start, one())
    other = (
        one if first == then else noise_source(then, 5, latent)
    )  # a generator of its own, or goes on
    assert torch.equal(step, other())


# As read in A1111's sd_samplers_common.py and sd_samplers_timesteps.py, and in ComfyUI's
# samplers.py: compat, sampler, steps, strength → the schedule's steps, and how many are drawn.
STARTS = [
    *((None, "euler", 20, 0.75, 20, 15), (None, "euler", 20, 1.0, 20, 20)),
    *((None, "euler", 20, 0.04, 20, 0), (None, "euler", 20, 0.0, 20, 0)),
    *((Compat.DIFFUSERS, "heun", 10, 0.5, 10, 5), (Compat.DIFFUSERS, "ddim", 50, 0.8, 50, 40)),
    *((Compat.A1111, "euler", 20, 0.75, 20, 16), (Compat.A1111, "euler", 20, 1.0, 20, 20)),
    *((Compat.A1111, "euler", 20, 0.1, 20, 3), (Compat.A1111, "euler", 20, 0.01, 20, 1)),
    *((Compat.A1111, "ddim", 20, 0.75, 20, 14), (Compat.FORGE, "euler", 30, 0.5, 30, 16)),
    *((Compat.SDCPP, "euler", 20, 0.75, 20, 16), (Compat.SDCPP, "euler", 20, 1.0, 20, 20)),
    *((Compat.COMFYUI, "euler", 20, 0.75, 26, 20), (Compat.COMFYUI, "euler", 20, 1.0, 20, 20)),
    *((Compat.COMFYUI, "euler", 20, 0.1, 200, 20), (Compat.COMFYUI, "euler", 20, 0.0, 20, 0)),
]


@pytest.mark.parametrize(("name", "sampler", "steps", "strength", "total", "drawn"), STARTS)
def test_a_picture_starts_where_the_program_starts_it(
    name: Compat | None, sampler: str, steps: int, strength: float, total: int, drawn: int
) -> None:
    values = {"image": "a.png", "steps": steps, "strength": strength, "sampler": sampler}
    request = Request("x", compat=name).with_json(values)
    assert steps_of(request, rules(request)) == Steps(total, drawn)


def test_without_a_picture_all_steps_are_drawn() -> None:
    request = Request("x", steps=20, strength=0.5)
    assert steps_of(request, rules(request)) == Steps(20, 20)


def test_a_schedule_that_would_be_endless_is_refused() -> None:
    values = {"image": "a.png", "steps": 20, "strength": 0.0001, "sampler": "euler"}
    request = Request("x", compat=Compat.COMFYUI).with_json(values)
    with pytest.raises(BadRequest, match="200,000 steps"):
        steps_of(request, rules(request))
