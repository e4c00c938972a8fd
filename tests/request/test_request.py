"""A request that exists can be drawn."""

import re
from dataclasses import replace

import pytest

from txt2img.errors import BadRequest
from txt2img.request import Compat, Defaults, Request, Sampler, Schedule
from txt2img.request.fields import SEEDS

DEFAULTS = Defaults(512, 256, 30, 7.5, Sampler.DPMPP_2M, Schedule.KARRAS)


@pytest.mark.parametrize(
    ("text", "sampler"),
    [
        ("Euler a", Sampler.EULER_A),
        ("euler-ancestral", Sampler.EULER_A),
        ("DPM++ 2M SDE", Sampler.DPMPP_2M_SDE),
        ("dpmpp_2m", Sampler.DPMPP_2M),
        ("DPM++SDE", Sampler.DPMPP_SDE),
        ("UniPC", Sampler.UNIPC),
    ],
)
def test_samplers_are_spelt_as_people_do(text: str, sampler: Sampler) -> None:
    assert Sampler.parse(text) is sampler


def test_every_name_is_itself() -> None:
    assert [Sampler.parse(s.value) for s in Sampler] == list(Sampler)
    assert [Schedule.parse(s.value) for s in Schedule] == list(Schedule)


def test_schedules_have_other_programs_names_too() -> None:
    assert Schedule.parse("SGM Uniform") is Schedule.SGM_UNIFORM
    assert Schedule.parse("DDIM") is Schedule.DDIM_UNIFORM
    assert Schedule.parse("Polyexponential") is Schedule.EXPONENTIAL  # of rho 1


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("k_dpm_2_a", Sampler.DPM2_A),  # NovelAI, InvokeAI 2
        ("kdpm_2_a", Sampler.DPM2_A),  # InvokeAI
        ("KDPM2DiscreteScheduler", Sampler.DPM2),
        ("dpm_2_ancestral", Sampler.DPM2_A),  # ComfyUI, Fooocus
        ("dpmpp_3m_sde_gpu", Sampler.DPMPP_3M_SDE),
        ("dpmpp_2m_sde_heun_gpu", Sampler.DPMPP_2M_SDE_HEUN),
        ("euler_ancestral_cfg_pp", Sampler.EULER_A_CFGPP),
        ("Euler CFG++", Sampler.EULER_CFGPP),
        ("res_multistep_ancestral", Sampler.RES_MULTISTEP_A),
        ("DPM adaptive", Sampler.DPM_ADAPTIVE),
        ("k_dpm_fast", Sampler.DPM_FAST),
        ("PNDMScheduler", Sampler.PLMS),
        ("DEISMultistepScheduler", Sampler.DEIS),
        ("dpmpp_3m", Sampler.DPMPP_3M),  # InvokeAI
        ("DPM++ 2M SDE Heun", Sampler.DPMPP_2M_SDE_HEUN),
        ("DDIM CFG++", Sampler.DDIM_CFGPP),
    ],
)
def test_samplers_have_other_programs_names_too(name: str, sampler: Sampler) -> None:
    assert Sampler.parse(name) is sampler


def test_automatic_is_the_samplers_schedule() -> None:
    defaults = Defaults(64, 64, 20, 7.0, Sampler.DPMPP_3M_SDE, Schedule.LEADING)
    asked = Request("x", schedule=Schedule.AUTOMATIC)
    assert asked.filled(defaults).schedule is Schedule.EXPONENTIAL
    assert replace(asked, sampler=Sampler.EULER).filled(defaults).schedule is Schedule.LINEAR
    assert replace(asked, sampler=Sampler.DDIM).filled(defaults).schedule is Schedule.LEADING


def test_sigmas_decide_the_steps() -> None:
    defaults = Defaults(64, 64, 20, 7.0, Sampler.EULER, Schedule.KARRAS)
    asked = Request("x", sigmas="14.6,3, 1")  # to 0
    assert asked.filled(defaults).steps == 3
    assert asked.filled(defaults).filled(defaults).steps == 3
    with pytest.raises(BadRequest, match="of 3 steps; leave out --steps 9"):
        replace(asked, steps=9).filled(defaults)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("sigmas", "1,2,0", "must fall to 0, but 2 comes after 1"),
        ("sigmas", "1,-1", "must fall"),
        ("sigmas", "nan,0", "numbers with commas, such as 14.6"),
        ("sigmas", "0", "2 to 10,001 levels, got 1"),
        ("seg", "3,0", "0 is not 0.01 … inf"),
        ("apg", "0,1,2", "2 is not -0.99 … 0.99"),
        ("apg", "1,2,0.1,4", "1 to 3 numbers, such as 0,15,-0.5; got 4"),
        ("dynamic_thresholding", "7,99", "99 is not 0.5 … 1"),
        ("freeu", "1.3,1.4", "4 to 5 numbers"),
        ("freeu", "1.3,1.4,0.9,0.2,1.5", "versions 1 and 2"),
        ("freeu", "on", "numbers with commas"),
    ],
)
def test_compact_texts_are_checked(field: str, text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(message)):
        Request("x", **{field: text})


def test_an_unknown_sampler_is_answered_with_the_names_and_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r'"eulr".*ddpm, ddim.*did you mean euler\?'):
        Sampler.parse("eulr")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "1 … 10,000, got 0"),
        ("steps", 10_001, "got 10001"),
        ("steps", True, "whole number"),
        ("width", 100, "multiple of 8, got 100; the nearest: 96 or 104"),
        ("width", 63, "64 … 8,192"),
        ("height", 8200, "64 … 8,192"),
        ("height", "64", "whole number"),
        ("seed", -1, r"0 … 2\^64-1"),
        ("seed", SEEDS, r"0 … 2\^64-1"),
        ("seed", 10**4000, "a number of 13,288 bits"),
        ("cfg", -0.5, "0 … 1000"),
        ("cfg", float("nan"), "0 … 1000"),
        ("cfg", float("inf"), "0 … 1000"),
        ("cfg", 10**400, "0 … 1000"),
        ("cfg", 1e308, "0 … 1000"),
        ("cfg_rescale", 1.5, "0 … 1"),
        ("cfg_rescale", "much", "must be a number"),
        ("eta", 2, "0 … 1"),
        ("count", 0, "1 … 100,000"),
        ("compat", "a1112", "did you mean a1111"),
        ("clip_skip", 0, "1 … 12, got 0"),
        ("subseed", -1, r"0 … 2\^64-1"),
        ("subseed_strength", 1.5, "0 … 1"),
        ("subseed_strength", None, "must be a number"),
        ("prompt", "a\0b", "NUL"),
        ("prompt", "a\ud800", "UTF-8"),
        ("prompt", 3, "must be text"),
        ("prompt", "x" * 65_537, "65,537 characters"),
        ("negative", "\udcff", "UTF-8"),
        ("sampler", "eulr", "no sampler"),
        ("sampler", 3, "must be a name"),
        ("schedule", ["karras"], "must be a name"),
        ("promt", "x", "did you mean prompt"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(
    field: str, value: object, message: str
) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        Request.from_json({"prompt": "", field: value})
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_is_a_prompt() -> None:
    assert Request("").prompt == ""


def test_a_missing_prompt_is_none() -> None:
    with pytest.raises(BadRequest, match="prompt"):
        Request.from_json({"steps": 3})


def test_filled_keeps_what_is_given_even_if_it_is_zero() -> None:
    filled = Request("x", cfg=0.0, steps=5).filled(DEFAULTS)
    assert (filled.cfg, filled.steps, filled.width, filled.height) == (0.0, 5, 512, 256)
    assert (filled.sampler, filled.schedule) == (Sampler.DPMPP_2M, Schedule.KARRAS)


def test_the_nth_picture_has_the_nth_seed() -> None:
    nth = Request("x", seed=42, count=4).nth(1)
    assert (nth.seed, nth.count) == (43, 1)
    assert Request("x", seed=SEEDS - 1).nth(1).seed == 0


def test_seeded_keeps_a_seed_and_draws_a_missing_one() -> None:
    assert Request("x", seed=0).seeded().seed == 0
    seeds = {Request("x").seeded().seed for _ in range(5)}
    assert len(seeds) > 1
    assert all(seed is not None and 0 <= seed < 2**32 for seed in seeds)


def test_json_gives_the_same_request_back() -> None:
    request = Request('a "red" apple\n', "x", "m", 64, 72, 3, 7, 0.5, 1, seed=SEEDS - 1).filled(
        DEFAULTS
    )
    assert Request.from_json(request.to_json()) == request


def test_later_fields_are_written_only_if_they_say_something() -> None:
    plain = Request("x", seed=1)
    assert not {"compat", "clip_skip", "subseed", "subseed_strength"} & set(plain.to_json())
    said = {"compat": "comfyui", "clip_skip": 2, "subseed": 3, "subseed_strength": 0.25}
    written = Request.from_json({"prompt": "x", **said}).to_json()
    assert {name: written[name] for name in said} == said
    assert Request.from_json(written).to_json() == written


def test_our_own_rules_are_none_at_all() -> None:
    assert Request.from_json({"prompt": "x", "compat": "txt2img"}) == Request("x")
    assert Request.from_json({"prompt": "x", "compat": "A1111 NV"}).compat is Compat.A1111_GPU


def test_where_seeds_are_mixed_the_second_one_is_counted() -> None:
    mixed = Request("x", seed=5, subseed=7, subseed_strength=0.5)
    assert (mixed.nth(2).seed, mixed.nth(2).subseed) == (5, 9)
    assert Request("x", seed=5, subseed=7).nth(2).seed == 7


def test_a_changed_request_checks_what_is_new() -> None:
    request = Request("a", seed=1)
    assert request.changed(seed=1) is request
    assert request.changed(seed=2) == replace(request, seed=2)
    with pytest.raises(BadRequest, match="steps must be"):
        request.changed(steps=0)
