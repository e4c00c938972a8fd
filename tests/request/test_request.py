"""A request that exists can be drawn."""

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
    assert Schedule.parse("SGM Uniform") is Schedule.TRAILING
    assert Schedule.parse("DDIM") is Schedule.LEADING


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
