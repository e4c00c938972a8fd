"""A1111's text: exactly as written there, and read whoever wrote it."""

import time
from dataclasses import replace

import pytest

from txt2img.images.metadata.a1111 import Infotext, ambiguous, describe, parse, to_request
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.adapters import Lora, Refiner
from txt2img.request.fields import Tile

GOLDEN = (
    "a cat, (cute:1.2) <lora:foo:0.8>\n"
    "Negative prompt: blurry\n"
    "Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7.0, Seed: 1, "
    "Size: 512x512, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, "
    'Lora hashes: "foo: aabbccddeeff", Version: txt2img 0.1.0',
    "x\n"
    "Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 4, Size: 64x64, "
    'Denoising strength: 0.7, RNG: NV, Hires prompt: "a \\"quoted\\", thing\\nsecond line: x '
    '\\\\ back", Hires upscale: 2, Hires upscaler: Latent, Version: v1.10.1',
)
REQUEST = Request(
    "a cat",
    negative="blurry",
    width=512,
    height=768,
    steps=30,
    cfg=7.5,
    sampler=Sampler.DPMPP_2M,
    schedule=Schedule.KARRAS,
    seed=42,
)


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_lines_come_back_as_they_were(text: str) -> None:
    assert str(parse(text)) == text


def test_the_first_golden_line_is_understood() -> None:
    request, notes = to_request(parse(GOLDEN[0]))
    assert request.prompt == "a cat, (cute:1.2)"
    assert request.loras == (Lora("foo", 0.8, 0.8, "aabbccddeeff"),)
    assert (request.negative, request.steps, request.cfg, request.seed) == ("blurry", 20, 7.0, 1)
    assert (request.sampler, request.schedule) == (Sampler.EULER_A, None)
    assert (request.width, request.height, notes) == (512, 512, [])


def test_the_second_golden_lines_quoted_value_is_decoded() -> None:
    hires = parse(GOLDEN[1]).entries["Hires prompt"]
    assert hires == 'a "quoted", thing\nsecond line: x \\ back'


def test_describe_writes_a1111s_keys_in_a1111s_order() -> None:
    assert str(describe(REQUEST, "sd15", "6ce0161689", "0.1.0")) == (
        "a cat\n"
        "Negative prompt: blurry\n"
        "Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, "
        "Size: 512x768, Model hash: 6ce0161689, Model: sd15, RNG: CPU, Version: txt2img 0.1.0"
    )


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize(
    "schedule",
    # The others have the names of A1111's nearest, or of another's.
    [one for one in Schedule if Schedule.parse(one.label) is one and one != "automatic"],
)
def test_what_is_described_is_read_back(sampler: Sampler, schedule: Schedule) -> None:
    wanted = Request(
        "a, b: c", "d", "m", 64, 64, 3, 1.0, 0.5, 0.25, sampler, schedule, seed=2**64 - 1
    )
    text = str(describe(wanted, "m", "0123456789", "0.1.0"))
    assert to_request(parse(text)) == (wanted, [])


@pytest.mark.parametrize("name", ["a, b", "a: b", 'a "b"', '"b"', " a ", "ä,ö", "a\\", "x\ny"])
def test_a_model_of_any_name_is_read_back(name: str) -> None:
    text = str(describe(REQUEST, name, "0123456789", "0.1.0"))
    assert parse(text).entries["Model"] == name
    assert len(text.split("\n")) == 3


def test_an_empty_prompt_starts_with_the_steps() -> None:
    text = str(describe(Request("", steps=3, width=64, height=64, seed=1), "m", "0", "0.1.0"))
    assert text.startswith("Steps: 3")
    assert parse(text).prompt == ""


def test_text_without_entries_is_all_prompt() -> None:
    assert parse("a cat\nwith hat: red") == Infotext("a cat\nwith hat: red")


def test_a_value_may_be_empty() -> None:
    assert parse('x\nSteps: 3, Empty: "", Seed: 4').entries["Empty"] == ""


def test_a_bare_value_ends_at_its_comma() -> None:
    assert parse('x\nSteps: 3, Odd: a "b, c", Seed: 4').entries["Odd"] == 'a "b'


def test_windows_newlines_are_newlines() -> None:
    info = parse("a\r\nb\r\nNegative prompt: c\r\nSteps: 3, Seed: 4, Size: 64x64\r\n")
    assert (info.prompt, info.negative, info.entries["Size"]) == ("a\nb", "c", "64x64")


def test_prompts_may_have_lines() -> None:
    info = parse("a\nb\nNegative prompt: c\nd\nSteps: 3, Seed: 4, Size: 64x64")
    assert (info.prompt, info.negative) == ("a\nb", "c\nd")


def test_sd_cpp_is_understood() -> None:
    line = (
        "Steps: 20, CFG scale: 7.000000, Guidance: 3.5, Eta: 0.000000, Seed: 42, "
        "Size: 512x512, Model: m, RNG: cuda, Sampler: euler_a karras, "
        "Skip layers: [7, 8, 9, ], Version: stable-diffusion.cpp, "
        'SDCPP: {"schema":"x", "a": [1, 2]}'
    )
    info = parse(f"a cat\n{line}")
    request, notes = to_request(info)
    assert (request.sampler, request.schedule) == (Sampler.EULER_A, Schedule.KARRAS)
    assert (request.cfg, request.seed) == (7.0, 42)
    assert request.compat is Compat.SDCPP
    assert notes == ['Skip layers: "[7" is not carried over']
    assert info.entries["SDCPP"] == '{"schema":"x", "a": [1, 2]}'


def test_what_no_request_says_is_told() -> None:
    line = (
        "Steps: 3, Sampler: Euler, Seed: 4, Size: 64x64, Denoising strength: 0.7, ENSD: 31337, "
        "Clip skip: 1, RNG: TPU, Version: v1.10.1, FP8 weight: Enable, Hires upscale: 2, "
        "Hires upscaler: Latent, Hires prompt: a dog"
    )
    _, notes = to_request(parse(f"x\n{line}"))
    told = "\n".join(notes)
    for what in ("Hires prompt", "RNG", "FP8 weight"):
        assert told.count(what) == 1
    assert len(notes) == 3


def test_old_samplers_carry_their_schedule() -> None:
    request, _ = to_request(parse("x\nSteps: 3, Sampler: DPM++ 2M Karras, Seed: 4, Size: 64x64"))
    assert (request.sampler, request.schedule) == (Sampler.DPMPP_2M, Schedule.KARRAS)


def test_what_cannot_be_done_is_noted_and_left_to_the_model() -> None:
    request, notes = to_request(parse("x\nSteps: 0, Sampler: SA-Solver, Seed: -1, Size: 100x64"))
    assert request == Request("x", height=64)
    assert len(notes) == 5 and "a program that it does not name" in notes[0]


def test_a_prompt_that_will_be_misread_is_told() -> None:
    assert ambiguous(REQUEST) is None
    assert "Negative prompt:" in (ambiguous(Request("a\n Negative prompt: b")) or "")


@pytest.mark.parametrize(
    "text",
    ['ab:"' * 50_000, " " * 200_000, "a " * 100_000, 'ab:"\\",' * 30_000, ", SDCPP: {" * 20_000],
)
def test_no_text_takes_long(text: str) -> None:
    start = time.process_time()
    parse(text)
    assert time.process_time() - start < 10  # not quadratic, on any machine


def test_dynamic_thresholding_and_freeu_of_extensions_are_read() -> None:
    text = (
        "a cat\nSteps: 20, Sampler: Euler, CFG scale: 20, Seed: 1, Size: 64x64, "
        "Dynamic thresholding enabled: True, Mimic scale: 7, Separate Feature Channels: True, "
        "Scaling Startpoint: MEAN, Variability Measure: AD, Interpolate Phi: 1, "
        "Threshold percentile: 99.5, freeu_enabled: True, freeu_b1: 1.01, freeu_b2: 1.02, "
        "freeu_s1: 0.99, freeu_s2: 0.95, freeu_start: 0, freeu_end: 1, Version: v1.10.1"
    )
    request, notes = to_request(parse(text))
    assert (request.dynamic_thresholding, request.freeu) == ("7,0.995", "1.01,1.02,0.99,0.95")
    assert notes == []
    _, notes = to_request(parse(text.replace("Measure: AD", "Measure: STD")))
    assert notes == ['Variability Measure: "STD" is not carried over']


def test_a_refiner_is_read_and_written_as_a1111_does() -> None:
    text = (
        "a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, "
        "Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.75, Version: v1.10.1"
    )
    request, notes = to_request(parse(text))
    assert request.refiner == Refiner("sd_xl_refiner_1.0", "7440042bbd")
    assert (request.refiner_switch, notes) == (0.75, [])
    written = str(describe(request, "m", "", "1"))
    assert "Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.75" in written
    assert to_request(parse(written))[0] == replace(request, model="m")
    bare, notes = to_request(parse(f"{text}, Refiner switch by sampling steps: True"))
    assert bare == request and "switch by sampling steps" in notes[0]
    assert to_request(parse("a\nSteps: 2, Seed: 1, Size: 64x64"))[0].refiner is None


@pytest.mark.parametrize(("text", "tile"), [("True", Tile.XY), ("False", None), ("y", Tile.Y)])
def test_tiling_is_carried_over(text: str, tile: Tile | None) -> None:
    line = f"Steps: 3, Sampler: Euler, Seed: 4, Size: 64x64, Tiling: {text}, Version: v1.10.1"
    request, notes = to_request(parse(f"x\n{line}"))
    assert (request.tile, notes) == (tile, [])
    described = describe(request, "m", "", "1")
    assert described.entries.get("Tiling") == (None if tile is None else text)
    assert to_request(described)[0].tile is tile


ENTRIES = "Steps: 20, Sampler: Euler a, Seed: 7, Size: 64x64, Model: foo, Version: v1.10.1"


@pytest.mark.parametrize(
    "added",
    [
        "Template: a {red|blue} rose\nNegative Template: blurry",
        "Template: a {red|blue} rose,\nin ink, Steps\nNegative Template:",
    ],
)
def test_entries_are_the_line_that_begins_with_steps(added: str) -> None:
    info = parse(f"a red rose\nNegative prompt: blurry\n{ENTRIES}\n{added}")
    assert (info.prompt, info.negative) == ("a red rose", "blurry")
    assert info.entries["Template"] == added.removeprefix("Template: ").split("\nNegative")[0]
    request, notes = to_request(info)
    assert (request.seed, request.model, request.width, notes) == (7, "foo", 64, [])


def test_a_prompts_line_of_steps_is_not_the_entries() -> None:
    info = parse(f"Steps: 3, Seed: 4, Size: 8x8\na stair\n{ENTRIES}")
    assert info.prompt == "Steps: 3, Seed: 4, Size: 8x8\na stair"
    assert info.entries["Seed"] == "7"
    info = parse("Steps: three of them\nSampler: Euler, Seed: 4, Size: 64x64")
    assert (info.prompt, info.entries["Seed"]) == ("Steps: three of them", "4")


def test_text_after_the_entries_is_told() -> None:
    [note] = to_request(parse(f"a\n{ENTRIES}\nmade with love"))[1]
    assert note == 'Text after the entries: "made with love" is not carried over'


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("Hypernet: ink, Hypernet hash: 9f172158, Hypernet strength: 0.7", "Hypernet: "),
        ("AddNet Enabled: True, AddNet Model 1: ink(abc), AddNet Weight A 1: 0.8", "AddNet Model"),
        ("ADetailer model: face.pt, ADetailer confidence: 0.3", "ADetailer model"),
        ("Mimic mode: Cosine Up", "Mimic mode"),
        ("FreeU Stages: 1", "FreeU Stages"),
        ("Any key that nobody knows: x", "Any key that nobody knows"),
    ],
)
def test_every_entry_that_is_not_known_is_told(more: str, told: str) -> None:
    notes = to_request(parse(f"a\n{ENTRIES}, {more}"))[1]
    assert len(notes) == more.count(": ")
    assert any(note.startswith(told) for note in notes)


@pytest.mark.parametrize(
    "more",
    ["AddNet Enabled: False", "Emphasis: Original", "Denoising strength: 0", "Batch size: 4"],
)
def test_entries_that_decide_nothing_are_not_told(more: str) -> None:
    assert to_request(parse(f"a\n{ENTRIES}, {more}"))[1] == []


def test_many_notes_are_counted() -> None:
    more = ", ".join(f"Odd {i}: x" for i in range(30))
    notes = to_request(parse(f"a\n{ENTRIES}, {more}"))[1]
    assert (len(notes), notes[-1]) == (21, "and 10 more")


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("euler_ancestral_karras", Sampler.EULER_A, Schedule.KARRAS),
        ("DPM++ 2M SDE_karras", Sampler.DPMPP_2M_SDE, Schedule.KARRAS),
        ("dpmpp_2m_sde_gpu_sgm_uniform", Sampler.DPMPP_2M_SDE, Schedule.SGM_UNIFORM),
        ("dpmpp_2m_sde_gpu, Scheduler: karras", Sampler.DPMPP_2M_SDE, Schedule.KARRAS),
        ("sample_dpmpp_sde", Sampler.DPMPP_SDE, None),
        ("k_lms", Sampler.LMS, None),
    ],
)
def test_samplers_in_other_programs_words(
    name: str, sampler: Sampler, schedule: Schedule | None
) -> None:
    line = f"Steps: 3, Sampler: {name}, Seed: 4, Size: 64x64, Version: ComfyUI"
    request, notes = to_request(parse(f"x\n{line}"))
    assert (request.sampler, request.schedule, notes) == (sampler, schedule, [])


def test_fooocus_lists_its_loras_beside_the_prompt() -> None:
    request, notes = to_request(
        parse(
            "a cat, in ink\nSteps: 30, Sampler: euler, Seed: 5, Size: 64x128, Model: foo, "
            'VAE: Default (model), Raw prompt: a cat, Lora hashes: "ink: 123abc", '
            'Lora weights: "ink: 0.1", Version: Fooocus v2.5.5'
        )
    )
    assert request.loras == (Lora("ink", 0.1, 0.1, "123abc"),)
    assert (request.vae, notes) == (None, [])


def test_a_broken_name_costs_that_name_only() -> None:
    text = f"a cat <lora:styles/ink:0.5> <lora:x:much>\n{ENTRIES}, VAE hash: zz, VAE: x"
    request, notes = to_request(parse(text))
    assert (request.prompt, request.seed, request.vae) == ("a cat", 7, None)
    assert request.loras == (Lora("ink", 0.5, 0.5),)
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("pag", 3.0), ("seg", "3"), ("apg", "0"), ("freeu", "1,1.2,0.9,0.2"), ("sigmas", "7")],
)
def test_settings_of_sampling_are_read_back(field: str, value: object) -> None:
    request = replace(REQUEST, **{field: value})
    text = str(describe(request, "m", "", "1"))
    assert getattr(to_request(parse(text))[0], field) == value
