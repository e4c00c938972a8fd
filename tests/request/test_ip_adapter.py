"""IP-Adapters in requests: the option's text, JSON, records, sweeps, ids."""

from pathlib import Path

import pytest

from txt2img.errors import BadRequest
from txt2img.request import Request
from txt2img.request.compat import canonical
from txt2img.request.input_image import ImageRef
from txt2img.request.interval import Interval
from txt2img.request.ip_adapter import IPAdapterRef, IPAdapterUse, parse_ip_adapter
from txt2img.request.prompt_line import from_json, from_line
from txt2img.request.sweep import Sweep


def use(model: str, *images: str, **more: object) -> IPAdapterUse:
    return IPAdapterUse(IPAdapterRef(model), tuple(map(ImageRef, images)), **more)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plus:a.png", use("plus", "a.png")),
        ("plus:a.png,b.png:0.5", use("plus", "a.png", "b.png", weight=0.5)),
        ("plus:a.png:-1", use("plus", "a.png", weight=-1.0)),
        (
            "x/ip.safetensors:a.png:1:..0.5",
            use("x/ip.safetensors", "a.png", interval=Interval(0, 0.5)),
        ),
        ("C:/ip.safetensors:D:/a.png", use("C:/ip.safetensors", "D:/a.png")),
    ],
)
def test_the_options_text_is_read_and_written(text: str, wanted: IPAdapterUse) -> None:
    assert parse_ip_adapter(text) == wanted
    assert parse_ip_adapter(str(wanted)) == wanted


def test_a_picture_whose_name_has_commas_is_one(folder: Path) -> None:
    Path("a,b.png").touch()
    assert parse_ip_adapter("plus:a,b.png") == use("plus", "a,b.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plus", "--ip-adapter is MODEL:IMAGE"),
        ("plus:a.png:depth", "--ip-adapter is MODEL:IMAGE"),
        ("plus:,", "needs a picture"),
        ("plus:a.png:1000", "weight must be -100 … 100"),
    ],
)
def test_wrong_texts_are_told_in_a_line(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_ip_adapter(text)


def test_json_lines_and_records_say_the_same() -> None:
    wanted = Request("x", ip_adapters=(use("plus", "a.png", weight=0.5), use("face", "b.png")))
    by_text = from_json(
        '{"prompt": "x", "ip_adapters": ["plus:a.png:0.5", "face:b.png"]}', Request("x")
    )
    plus = '{"model": "plus", "image": "a.png", "weight": 0.5}'
    objects = f'{{"prompt": "x", "ip_adapters": [{plus}, "face:b.png"]}}'
    by_line = from_line("x --ip-adapter plus:a.png:0.5 --ip-adapter face:b.png", Request(""))
    assert wanted == by_text == from_json(objects, Request("x")) == by_line
    record = wanted.to_json()
    assert record["ip_adapters"][1] == {
        "model": {"name": "face", "hash": ""},
        "images": ({"name": "b.png", "hash": ""},),
    }
    assert Request.from_json(record) == wanted
    assert "ip_adapters" not in Request("x").to_json()


def test_weights_and_intervals_are_swept() -> None:
    request = Request("x", ip_adapters=(use("plus", "a.png"),))
    axes = ["ip-adapter-weight=0.5,1", "ip-adapter-interval=0..0.5|0..1"]
    drawn = [*Sweep([request], axes)]
    assert [one.ip_adapter_weight for one in drawn] == ["0.5", "1", "0.5", "1"]
    assert [one.ip_adapter_interval for one in drawn] == ["0..0.5", "0..0.5", "0..1", "0..1"]
    with pytest.raises(BadRequest, match="needs --ip-adapter"):
        [*Sweep([Request("x")], axes)]


def test_names_of_files_do_not_change_what_is_drawn() -> None:
    """Hashes tell; the mask and the pictures have theirs, too."""

    def named(model: str, image: str, digits: str) -> Request:
        one = IPAdapterUse(IPAdapterRef(model, "ab" * 5), (ImageRef(image, digits * 32),))
        return Request("x", ip_adapters=(one,), ip_masks=(ImageRef(image, digits * 32),))

    assert canonical(named("a", "a.png", "12")) == canonical(named("b", "b.png", "12"))
    assert canonical(named("a", "a.png", "12")) != canonical(named("a", "a.png", "34"))
