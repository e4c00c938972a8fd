"""Every field of a request is declared once, and completely."""

from dataclasses import fields

from txt2img.request import Request
from txt2img.request.fields import FIELDS
from txt2img.request.prompt_line import OPTIONS


def test_a_row_is_of_its_field_and_has_the_default() -> None:
    assert list(FIELDS) == [field.name for field in fields(Request)]
    plain = Request("")
    assert all(
        getattr(plain, name) == row.default for name, row in FIELDS.items() if name != "prompt"
    )
    assert [name for name, row in FIELDS.items() if row.optional] == [
        *("width", "height", "steps", "cfg", "cfg_rescale", "eta", "sampler", "schedule", "seed"),
        *("vae", "compat", "clip_skip", "subseed", "refiner", "cfg_interval", "ensd", "rng"),
        *("tile", "image", "strength", "resize", "mask", "mask_blur", "inpaint_fill"),
        *("only_masked", "outpaint", "hires", "hires_width", "hires_height", "hires_upscaler"),
        *("hires_strength", "hires_steps", "upscale_by", "upscale", "guidance"),
        *("skip_layer_guidance", "transparent", "background", "control_mode", "enhancer", "sigmas"),
        *("pag", "seg", "apg", "dynamic_thresholding", "freeu"),
    ]


def test_no_flag_key_or_parameter_means_two_fields() -> None:
    rows = FIELDS.values()
    for names in (
        [flag for row in rows for flag in (*row.flags, *row.aliases)],
        [row.a1111 for row in rows if row.a1111],
        [row.option for row in rows],
    ):
        assert len(set(names)) == len(names)


def test_whole_numbers_have_a_range_and_flags_begin_with_the_long_one() -> None:
    for row in FIELDS.values():
        assert (row.kind is int) == (row.allowed is not None)
        assert not row.flags or row.flags[0].startswith("--")


def test_flags_of_fields_that_lines_may_change_are_read_in_prompt_files() -> None:
    for row in FIELDS.values():
        for flag in row.flags:
            changes = (row.scalar or row.listed) and not row.same_for_all
            assert (OPTIONS.get(flag) == row.name) == changes


def test_records_of_the_first_fields_hold_them_all_and_later_ones_only_if_set() -> None:
    assert list(Request("x").to_json()) == [
        *("prompt", "negative", "model", "width", "height", "steps", "cfg", "cfg_rescale", "eta"),
        *("sampler", "schedule", "seed", "count", "loras", "embeddings", "vae", "template"),
        "negative_template",
    ]
    assert "reuse" in Request("x", reuse=2).to_json()
