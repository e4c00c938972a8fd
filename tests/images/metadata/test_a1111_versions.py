"""Other programs' texts, built from their own sources, set the rules that they drew by."""

from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from txt2img.images import image_file
from txt2img.images.metadata.a1111 import describe, parse, to_request
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.compat import rules

A1111 = (
    "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: {}, CFG scale: 7, Seed: 5, "
    "Size: 512x512, Model hash: 6ce0161689, Model: v1-5{}, Version: {}"
)


def read(text: str) -> tuple[Request, list[str]]:
    return to_request(parse(text))


def a1111(sampler: str, more: str = "", version: str = "v1.10.1") -> tuple[Request, list[str]]:
    return read(A1111.format(sampler, more, version))


@pytest.mark.parametrize(
    ("more", "compat", "first"),
    [
        ("", Compat.A1111_GPU, "nv"),
        (", RNG: NV", Compat.A1111_GPU, "nv"),
        (", RNG: CPU", Compat.A1111, "cpu"),
    ],
)
def test_a1111_draws_where_its_text_says(more: str, compat: Compat, first: str) -> None:
    request, notes = a1111("Euler a, Schedule type: Karras", more)
    assert (request.compat, rules(request).init_rng, notes) == (compat, first, [])
    assert rules(request).edits_one_step_late


def test_a1111s_other_choices_are_carried_over() -> None:
    more = ", Variation seed: 9, Variation seed strength: 0.25, Clip skip: 2, ENSD: 31337"
    request, notes = a1111("Euler a, Schedule type: Karras", more)
    assert notes == []
    assert (request.clip_skip, request.ensd, rules(request).seed_delta) == (2, 31337, 31337)
    assert (request.subseed, request.subseed_strength) == (9, 0.25)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        ("DPM++ 2M, Schedule type: Automatic", Schedule.KARRAS),
        ("DPM++ SDE, Schedule type: Automatic", Schedule.KARRAS),
        ("DPM++ 2M SDE, Schedule type: Automatic", Schedule.EXPONENTIAL),
        ("Euler a, Schedule type: Automatic", Schedule.LINEAR),
        ("Euler, Schedule type: SGM Uniform", Schedule.SGM_UNIFORM),
        ("DPM++ 2M Karras", Schedule.KARRAS),
        ("DPM++ 2M", Schedule.LINEAR),  # before 1.9, which put Karras in the name
        ("LCM, Schedule type: Automatic", None),
    ],
)
def test_a1111s_schedule_is_what_it_took(sampler: str, schedule: Schedule | None) -> None:
    assert a1111(sampler)[0].schedule is schedule


def test_solvers_that_are_not_its_own_are_told() -> None:
    for name, part in (("UniPC", "order 3"), ("LMS", "order 4")):
        [note] = a1111(f"{name}, Schedule type: Automatic")[1]
        assert part in note


@pytest.mark.parametrize(
    ("version", "count"),
    [("v1.10.1", 0), ("v1.7.0-225-g1", 0), ("v1.7.0", 1), ("1.6.1", 1), ("v1.5.2", 1)],
)
def test_older_versions_rounded_their_noise_levels(version: str, count: int) -> None:
    assert len(a1111("Euler", version=version)[1]) == count


def test_a_text_without_a_version_is_an_old_a1111s_if_it_has_its_hash() -> None:
    text = A1111.format("Euler a", "", "").removesuffix(", Version: ")
    request, notes = read(text)
    assert request.compat is Compat.A1111_GPU and len(notes) == 1
    other, notes = read(text.replace("Model hash: 6ce0161689, ", ""))
    assert other.compat is None
    assert notes == [
        "it was drawn by a program that it does not name, whose rules are not known here; "
        "txt2img's own are used"
    ]


def test_old_changes_of_a_prompt_are_told() -> None:
    text = A1111.format("Euler", "", "v1.5.0").replace("a cat", "[a:b:5.0]")
    assert sum("counted a change" in note for note in read(text)[1]) == 1
    assert "counted a change" not in " ".join(read(text.replace("5.0]", "0.5]"))[1])


@pytest.mark.parametrize(
    "version", ["f2.0.1v1.10.1-previous-664-gd557aef9", "f0.0.17v1.8.0rc-latest-276-g29be1da7"]
)
def test_forge_tells_whole_times(version: str) -> None:
    request, notes = a1111("Euler, Schedule type: Simple", version=version)
    assert (request.compat, notes) == (Compat.FORGE, [])
    assert Sampler.EULER in rules(request).integer_times and rules(request).init_rng == "nv"
    request, _ = a1111("Euler, Schedule type: Simple", ", RNG: CPU", version)
    assert (request.rng, rules(request).init_rng) == ("cpu", "cpu")


SDCPP = (
    "a cat\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 42, "
    "Size: 512x512, Model: m.safetensors, RNG: {}, Sampler: euler_a karras, "
    "Version: stable-diffusion.cpp"
)


def test_sd_cpp_draws_with_its_own_generator() -> None:
    request, notes = read(SDCPP.format("cuda"))
    assert (request.compat, rules(request).init_rng, notes) == (Compat.SDCPP, "nv", [])
    request, notes = read(SDCPP.format("cpu"))
    assert (request.rng, rules(request).init_rng, notes) == ("cpu", "cpu", [])
    assert "std_default" in read(SDCPP.format("std_default"))[1][0]
    request, notes = read(SDCPP.format("cpu, Sampler RNG: cuda"))
    assert (rules(request).init_rng, rules(request).step_rng, notes) == ("cpu", "nv", [])
    request, notes = read(SDCPP.format("cuda, Sampler RNG: cuda"))
    assert (request.rng, rules(request).step_rng, notes) == (None, None, [])
    request, notes = read(SDCPP.format("cpu, Sampler RNG: std_default"))
    assert request.rng == "cpu,nv" and "Sampler RNG" in notes[0] and len(notes) == 1


@pytest.mark.parametrize(
    ("entry", "compat"),
    [
        ("Version: ComfyUI", Compat.COMFYUI),
        ("Version: Fooocus v2.5.0", Compat.COMFYUI),
        ("App: SD.Next, Version: 5a4a3b0", None),
        ("Version: Draw Things 1.2", None),
        ("Version: somebody's", None),
    ],
)
def test_other_writers_of_such_a_text_have_their_own_rules(
    entry: str, compat: Compat | None
) -> None:
    request, notes = read(f"x\nSteps: 9, Sampler: Euler, CFG scale: 7, Seed: 5, {entry}")
    assert request.compat is compat
    assert len(notes) == (compat is None) and all("rules are not known" in note for note in notes)


@pytest.mark.parametrize("compat", [None, *(c for c in Compat if c is not Compat.TXT2IMG)])
@pytest.mark.parametrize("more", [{}, {"ensd": 7}, {"clip_skip": 2}])
def test_our_own_text_says_its_rules_and_is_read_back(
    compat: Compat | None, more: dict[str, int]
) -> None:
    wanted = Request("x", "", "m", 64, 64, 3, 2.0, seed=1, compat=compat, **more)
    assert read(str(describe(wanted, "m", "0123456789", "0.1.0"))) == (wanted, [])


def test_a_card_in_our_own_text_is_read_back() -> None:
    wanted = Request("x", "", "m", 64, 64, 3, 2.0, seed=1, rng="nv")
    assert read(str(describe(wanted, "m", "0123456789", "0.1.0"))) == (wanted, [])


def test_a_picture_of_a1111_is_drawn_by_its_rules(tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text("parameters", A1111.format("DPM++ 2M SDE Karras", ", ENSD: 3", "v1.8.0"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=texts)
    found = image_file.read(tmp_path / "x.png")
    assert found.request == Request(
        *("a cat", "blurry", "v1-5", 512, 512, 20, 7.0),
        sampler=Sampler.DPMPP_2M_SDE,
        schedule=Schedule.KARRAS,
        seed=5,
        compat=Compat.A1111_GPU,
        ensd=3,
    )


@pytest.mark.parametrize("text", ["gpu", "nv:0", "nv:", "NV", "nv:99999999999", 5])
def test_a_source_that_is_none_is_refused(text: object) -> None:
    from txt2img.errors import BadRequest

    with pytest.raises(BadRequest, match="rng must be cpu, nv or nv:THREADS"):
        Request.from_json({"prompt": "", "rng": text})
