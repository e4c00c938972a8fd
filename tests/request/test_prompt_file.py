"""A file of prompts is read as people write them."""

import base64
import io
import json
import os
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest

from txt2img.errors import BadFile, BadRequest
from txt2img.request import Compat, Request, Sampler, Schedule, prompt_file, prompt_line
from txt2img.request.input_image import ImageRef, InpaintFill, Resize
from txt2img.request.prompt_line import from_line

BASE = Request("", steps=9, seed=1)


def requests(text: str) -> list[Request]:
    """The requests of a file with that text."""
    return prompt_file.parse_prompts(text, BASE).requests


def one(line: str) -> Request:
    """The request of one line."""
    [request] = requests(line)
    return request


def from_file(name: str = "p.txt") -> list[str]:
    """The prompts of a file."""
    file = prompt_file.read_prompts(name, io.BytesIO(), BASE)
    return [request.prompt for request in file.requests]


def test_blank_lines_and_comments_are_skipped() -> None:
    found = requests("\n a red apple \n\n# not this\n  # nor this\na #1 pear\r\n")
    assert [request.prompt for request in found] == ["a red apple", "a #1 pear"]


def test_a_line_has_options_of_its_own() -> None:
    request = one("a red apple --seed 7 --cfg 5 -W 64 --sampler Euler a --steps=3")
    assert request == Request(
        "a red apple", width=64, steps=3, cfg=5.0, sampler=Sampler.EULER_A, seed=7
    )


def test_a_line_can_say_all_that_is_not_the_models() -> None:
    said = {"prompt", *prompt_line.OURS.values()}
    made_of_the_prompt = {
        *("template", "negative_template", "loras", "embeddings"),  # <lora:…>, words
        *("written", "enhancer"),
    }
    one_for_all = {"model", "vae", "refiner", "refiner_switch"}
    in_json_alone = {"references"}
    assert {f.name for f in fields(Request)} == (
        said | made_of_the_prompt | one_for_all | in_json_alone
    )


def test_what_a_line_leaves_open_is_the_command_lines() -> None:
    assert (one("x").steps, one("x").seed, one("x --seed 2").steps) == (9, 1, 9)


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog's bone",
        "rock 'n' roll",
        '5" disk',
        "a - b -- c",
        "t-shirt -w x",
        'say "hi" to \'em',
        "a\\b",
        "(a:1.2) [b]",
        "16:9",
        "x--seed 7",
    ],
)
def test_quotes_and_hyphens_in_a_prompt_are_the_prompts(prompt: str) -> None:
    assert one(prompt).prompt == prompt
    assert one(f"{prompt} --seed 7") == Request(prompt, steps=9, seed=7)


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ('"a red apple" --seed 7', "a red apple"),
        ("'a red apple' --seed 7", "a red apple"),
        (r'"a \"red\" apple" --seed 7', 'a "red" apple'),
        ('"a --cfg 3 apple" --seed 7', "a --cfg 3 apple"),
        ("--seed 7", ""),
        ('"" --seed 7', ""),
    ],
)
def test_a_prompt_may_be_quoted_as_a_whole(line: str, prompt: str) -> None:
    assert one(line) == Request(prompt, steps=9, seed=7)


@pytest.mark.parametrize(
    ("line", "negative"),
    [
        ("x -n blurry, dog's --seed 7", "blurry, dog's"),
        ('x --negative "a --cfg 3" --seed 7', "a --cfg 3"),
        ("x --negative='blurry' --seed 7", "blurry"),
        ('x -n "" --seed 7', ""),
        ("x -n 12 --seed 7", "12"),
    ],
)
def test_a_negative_prompt_may_have_many_words(line: str, negative: str) -> None:
    assert one(line) == Request("x", negative, steps=9, seed=7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x --ar 16:9", r'line 2: no option "--ar"'),
        ("x --seed", "line 2: --seed needs a value"),
        ("x --seed --cfg 3", "line 2: --seed needs a value"),
        ("x --seed abc", 'line 2: seed must be a whole number, got "abc"'),
        ("x --cfg nan", "line 2: cfg must be 0 … 1000, got nan"),
        ("x --width 100", "line 2: width must be a multiple of 8"),
        ("x --model m", 'line 2: no option "--model"'),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        requests(f"fine\n{line}\n")


def test_json_lines_are_told_by_their_brace() -> None:
    found = requests('\n {"prompt": "a", "seed": 7}\n# no\n{"prompt": "b", "cfg": 5}\n')
    assert found == [
        Request("a", steps=9, seed=7),
        Request("b", steps=9, cfg=5.0, seed=1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"seed": 7}', 'needs a "prompt"'),
        ('{"prompt": "a", "promt": 1}', "promt"),
        ('{"prompt": "a", "times": 2}', "times"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "a key is there twice"),
        ('{"prompt": "a", "cfg": NaN}', "NaN is not a number"),
        ('{"prompt": "a", "model": "b"}', "one model"),
        ('{"prompt": "a\\ud800"}', "UTF-8"),
        ('{"prompt": "a"', "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_bad_json_is_told_with_its_line(line: str, message: str) -> None:
    with pytest.raises(BadRequest, match=f"line 2: .*{message}"):
        requests('{"prompt": "a"}\n' + line)


def test_dash_is_standard_input() -> None:
    file = prompt_file.read_prompts("-", io.BytesIO("ä\n".encode()), BASE)
    assert [request.prompt for request in file.requests] == ["ä"]


def test_a_byte_order_mark_is_no_part_of_the_prompt(folder: Path) -> None:
    Path("p.txt").write_bytes("\ufeffx\n".encode())
    assert from_file() == ["x"]


@pytest.mark.parametrize("content", [b"", b"\n \n# x\n"])
def test_a_file_without_prompts_is_refused(folder: Path, content: bytes) -> None:
    Path("p.txt").write_bytes(content)
    with pytest.raises(BadRequest, match="no prompts"):
        from_file()


def test_what_is_no_text_is_refused(folder: Path) -> None:
    for content, message in (
        (b"\x89PNG\r\n", "line 1 is not UTF-8 text"),
        (b"fine\n\xff\n", "line 2 is not UTF-8 text"),
        (b"\xff\xfea\0b", "not UTF-16 text"),
    ):
        Path("p.txt").write_bytes(content)
        with pytest.raises(BadFile, match=message):
            from_file()


def test_what_is_no_file_is_refused(folder: Path) -> None:
    os.mkfifo("pipe")
    for name, message in ((".", "regular file"), ("pipe", "regular file"), ("no", "no such file")):
        with pytest.raises(BadFile, match=message):
            from_file(name)


def test_a_huge_line_is_refused_at_once() -> None:
    with pytest.raises(BadRequest, match="line 1: prompt has 10,000,000 characters"):
        requests("x" * 10_000_000)
    with pytest.raises(BadRequest, match="line 1: prompt has 1,000,000 characters"):
        requests("x" * 1_000_000)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-8"])
def test_unicode_is_read_however_it_is_written(folder: Path, encoding: str) -> None:
    Path("p.txt").write_bytes("ä 苹\r\nb --seed 7\r\n".encode(encoding))
    assert from_file() == ["ä 苹", "b"]


def test_text_without_a_mark_that_is_no_utf8_is_one_error(folder: Path) -> None:
    Path("p.txt").write_bytes("abc\n".encode("utf-16-le"))
    with pytest.raises(BadRequest, match="line 1: prompt holds a NUL"):
        from_file()


@pytest.mark.parametrize(
    "line",
    [
        '--prompt "a red apple" --negative_prompt "b, c" --steps 3 --cfg_scale 5 --seed 7 '
        "--width 64 --height 72 --sampler_name 'DPM++ 2M Karras' --n_iter 2 --batch_size 3 "
        "--tiling false",
        "a red apple --n b, c --w 64 --h 72 --d 7 --l 5 --s 3 --ss dpmpp_2m --schedule karras "
        "--count 6",
        'a red apple -n "b, c" -W 64 -H 72 --seed 7 --cfg 5 --steps 3 --sampler dpm++2m '
        "--schedule karras --count 6",
        '{"prompt": "a red apple", "negative": "b, c", "width": 64, "height": 72, "seed": 7, '
        '"cfg": 5, "steps": 3, "sampler": "dpm++2m", "schedule": "karras", "count": 6}',
        "prompt,negative_prompt,W,height,Seed,CFG scale,steps,sampler,count\n"
        'a red apple,"b, c",64,72,7,5,3,DPM++ 2M Karras,6',
        "prompt;negative;width;height;seed;cfg;steps;sampler;schedule;count\n"
        "a red apple;b, c;64;72;7;5;3;dpm++2m;karras;6",
    ],
)
def test_every_programs_form_says_the_same(line: str) -> None:
    assert one(line) == Request(
        "a red apple",
        "b, c",
        width=64,
        height=72,
        steps=3,
        cfg=5.0,
        sampler=Sampler.DPMPP_2M,
        schedule=Schedule.KARRAS,
        seed=7,
        count=6,
    )


@pytest.mark.parametrize("line", ["--prompt x --seed -1", '{"prompt": "x", "seed": -1}'])
def test_a_random_seed_of_a_line_is_its_own(line: str) -> None:
    assert one(line).seed is None


def test_options_without_effect_are_skipped_with_a_note() -> None:
    text = (
        "a --do_not_save_grid true --seed 3\n"
        "b --prompt_for_display x y --subseed -1 --seed_resize_from_h 0 --restore_faces false\n"
        "# c\n"
        "d --do_not_save_grid false\n"
    )
    file = prompt_file.parse_prompts(text, BASE, "p.txt")
    assert file.requests == [Request(p, steps=9, seed=s) for p, s in (("a", 3), ("b", 1), ("d", 1))]
    assert file.notes[0] == (
        '"p.txt" line 1 and 1 more: --do_not_save_grid has no effect here and is skipped'
    )
    assert [note.split(": ")[0] for note in file.notes[1:]] == ['"p.txt" line 2'] * 3


def test_options_of_kohya_may_be_capitals() -> None:
    assert one("x --W 768 --H 512 --D 7 --L 5 --S 3 --N b") == Request(
        "x", "b", width=768, height=512, seed=7, cfg=5.0, steps=3
    )


@pytest.mark.parametrize("option", ["--am 0.5", "--nl 3", "--ar 16:9", "--seed_resize_from_h 64"])
def test_no_wild_guess_at_a_short_option(option: str) -> None:
    with pytest.raises(BadRequest, match="line 1: no option") as error:
        requests(f"x {option}")
    assert "did you mean --eta" not in str(error.value)
    assert "did you mean --rng" not in str(error.value)


def test_json_lines_may_follow_plain_ones() -> None:
    found = requests('a {x|y}\n{"prompt": "b", "seed": 7}\n{"quoted"|c} d\n')
    assert [(one.prompt, one.seed) for one in found] == [
        ("a {x|y}", 1),
        ("b", 7),
        ('{"quoted"|c} d', 1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x --prompt y", "give one of them"),
        ("--prompt y --restore_faces true", 'no option "--restore_faces"'),
        ("--prompt y --batch_size 0", "--batch-size must be"),
        ("--prompt y --batch_size 2 --n_iter x", 'count must be a whole number, got "x"'),
    ],
)
def test_what_other_programs_can_and_we_cannot_is_told(line: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        requests(line)


def test_rows_have_blank_cells_and_cells_of_several_lines() -> None:
    found = requests('\nprompt,seed,cfg\n"two\nlines",7,\n,,\n# no comment,,2\n')
    assert found == [
        Request("two\nlines", steps=9, seed=7),
        Request("# no comment", steps=9, seed=1, cfg=2.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,seed\na,7\na, b,7", "line 3: 3 cells under 2 columns"),
        ("prompt,seed\na,7\na,x", "line 3: seed must be a whole number"),
        ('prompt,seed\na,7\n"a,7', "line 3: not CSV"),
        ("prompt,seed\n" + "x" * 200_000 + ",7", "line 2: not CSV: field larger"),
    ],
)
def test_bad_rows_are_told_with_their_line(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        requests(text)


def test_a_file_called_csv_needs_a_header(folder: Path) -> None:
    for header, message in (
        ("prompt,style", 'no column "style"; known: prompt, negative'),
        ("seed,steps", "no column is called prompt"),
        ("prompt,cfg,cfg_scale", "two columns are the same"),
    ):
        Path("p.csv").write_text(f"{header}\nx,1\n")
        with pytest.raises(BadRequest, match=f"line 1: {message}"):
            from_file("p.csv")
    Path("p.csv").write_text("prompt\nx y\n")
    assert from_file("p.csv") == ["x y"]


def test_a_prompt_with_commas_is_no_header() -> None:
    assert [request.prompt for request in requests("prompt, seed of a tree\nx")] == [
        "prompt, seed of a tree",
        "x",
    ]


def test_alternatives_are_no_json() -> None:
    assert one("{red|blue} apple").prompt == "{red|blue} apple"


def test_lines_with_errors_can_be_skipped(folder: Path) -> None:
    Path("p.txt").write_text("a\nb --steps 0\nc\nd --x\n")
    file = prompt_file.read_prompts("p.txt", io.BytesIO(), BASE, skip_errors=True)
    assert [request.prompt for request in file.requests] == ["a", "c"]
    assert list(file.errors) == [2, 4]
    assert str(file.errors[2]).startswith('"p.txt" line 2: steps must be')


def test_a_file_that_is_too_large_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_file, "SIZE_MAX", 2**20)
    Path("p.txt").write_bytes(b"a\n" * 2**20)
    with pytest.raises(BadFile, match=r'"p.txt" is larger than 1 MiB'):
        from_file()
    with pytest.raises(BadFile, match='"standard input" is larger than 1 MiB'):
        prompt_file.read_prompts("-", io.BytesIO(bytes(2**21)), BASE)


def test_a_line_may_say_whose_rules_it_is_drawn_by() -> None:
    line = (
        "a cat --compat comfy --clip-skip 2 --subseed 3 --subseed-strength 0.5 --rng nv:9 --ensd 4"
    )
    assert from_line(line, Request("")) == Request(
        "a cat",
        compat=Compat.COMFYUI,
        clip_skip=2,
        subseed=3,
        subseed_strength=0.5,
        ensd=4,
        rng="nv:9",
    )


def pictures(text: str) -> list[tuple[str, str]]:
    """The picture and mask that each request of a file in "lists" begins from."""
    found = prompt_file.parse_prompts(text, BASE, folder=Path("lists")).requests
    return [
        (str(request.image), "" if request.mask is None else request.mask.name) for request in found
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a cat --image a.png --mask ../m.png",
        "a cat -i a.png --mask-image ../m.png",
        'a cat --i "a.png" --mask_path ../m.png',
        '{"prompt": "a cat", "image": "a.png", "mask": "../m.png"}',
        '{"prompt": "a cat", "init_images": ["a.png"], "mask": "../m.png"}',
        "prompt,image,mask\na cat,a.png,../m.png",
        "prompt;init_img;mask\na cat;a.png;../m.png",
    ],
)
def test_pictures_to_begin_from_lie_where_the_file_does(text: str) -> None:
    assert pictures(text) == [("lists/a.png", "lists/../m.png")]


def test_pictures_of_the_command_line_lie_where_it_is_run() -> None:
    base = Request("", image=ImageRef("b.png"))
    parse = partial(prompt_file.parse_prompts, base=base, folder=Path("lists"))
    first, second = parse(f"a cat\na dog --image {os.sep}c.png").requests
    assert first.image == ImageRef("b.png") and second.image == ImageRef(f"{os.sep}c.png")
    [same] = parse('{"prompt": "x", "image": "-"}').requests
    assert same.image == ImageRef("-")


def test_a_line_says_how_its_picture_is_used() -> None:
    request = one("x --image 7 --t 0.5 --mask_blur 8 --mask-invert --only-masked --resize_mode 2")
    assert request == replace(
        Request("x", steps=9, seed=1, image=ImageRef("7"), strength=0.5, mask_blur=8.0),
        mask_invert=True,
        only_masked=32,
        resize=Resize.FILL,
    )
    assert one("x -i a --only-masked 64 --inpaint-fill 2").inpaint_fill is InpaintFill.NOISE


CALL: dict[str, object] = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "styles": [],
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "sampler_name": "DPM++ 2M Karras",
    "batch_size": 2,
    "n_iter": 3,
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 768,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "eta": None,
    "denoising_strength": 0.5,
    "s_churn": 0,
    "s_noise": 1,
    "script_args": [],
    "mask_blur_x": 4,
    "mask_blur_y": 4,
    "inpainting_fill": 1,
    "inpaint_full_res": True,
    "alwayson_scripts": {},
    "inpaint_full_res_padding": 16,
    "inpainting_mask_invert": 1,
    "resize_mode": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 2},
    "scheduler": "Automatic",
    "send_images": True,
    "save_images": False,
    "script_name": None,
    "enable_hr": False,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "initial_noise_multiplier": None,
}


def test_a_call_of_a1111s_api_is_read() -> None:
    picture = b"".join(bytes([i]) for i in range(256))
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    bare = base64.b64encode(picture[::-1]).decode()
    text = json.dumps({**CALL, "init_images": [url], "mask": bare})
    file = prompt_file.parse_prompts(text, Request(""), folder=Path("lists"))
    [request] = file.requests
    assert request.image is not None and request.mask is not None
    held = [file.pictures[ref.name] for ref in (request.image, request.mask)]
    assert held == [picture, picture[::-1]]
    assert replace(request, image=None, mask=None) == Request(
        "a cat", "blurry", width=512, height=768, steps=20, cfg=7.0, sampler=Sampler.DPMPP_2M,
        schedule=Schedule.KARRAS, count=6, clip_skip=2, strength=0.5, mask_blur=4.0,
        mask_invert=True, only_masked=16, resize=Resize.STRETCH,
    )  # fmt: skip


def test_a_call_with_a_second_pass_is_read() -> None:
    second = {"hr_scale": 1.5, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0}
    text = json.dumps({"prompt": "x", "enable_hr": True, "denoising_strength": 0.4, **second})
    [request] = requests(text)
    assert (request.hires, request.hires_strength, request.hires_steps) == (1.5, 0.4, None)
    assert str(request.hires_upscaler) == "latent" and request.strength is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"restore_faces": True}, '"restore_faces"'),
        ({"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts"),
        ({"init_images": ["a.png", "b.png"]}, "one picture"),
        ({"init_images": ["a.png"], "image": "b.png"}, "image and init_images"),
        ({"cfg_scale": 7, "cfg": 5}, "are the same"),
        ({"resize_mode": 3}, "resize must be a name, got 3"),
        ({"mask_blur_x": 4, "mask_blur_y": 5}, "differ"),
        ({"init_images": ["data:image/png;base64,?"]}, "not base64"),
        ({"image": 7}, "picture"),
    ],
)
def test_what_a_call_asks_for_in_vain_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=f"line 1: .*{message}"):
        requests(json.dumps({"prompt": "x", **values}))


def test_a_json_document_is_one_request_or_a_list_of_them() -> None:
    listed = json.dumps([{"prompt": "cat", "steps": 3}, "dog --seed 7"], indent=2)
    cat, dog = requests(listed)
    assert (cat.prompt, cat.steps, dog.prompt, dog.seed) == ("cat", 3, "dog", 7)
    assert one('{\n "prompt": "cat",\n "steps": 3\n}') == cat
    for prompt in ("[cat:dog:0.5]", "{red|blue}", "[1, 2]"):  # no documents of requests
        assert one(prompt).prompt == prompt
    with pytest.raises(BadRequest, match=r'"prompts" item 2: .* did you mean steps'):
        requests('["cat", {"prompt": "dog", "stepz": 3}]')
    with pytest.raises(BadRequest, match="no prompts"):
        requests("[]")


@pytest.mark.parametrize("suffix", ["toml", "YAML", "yml", "html"])
def test_settings_and_pages_are_no_prompts(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_text('prompt = "a cat"\n')
    with pytest.raises(BadRequest, match="no list of prompts"):
        prompt_file.read_prompts(str(path), io.BytesIO(), BASE)
