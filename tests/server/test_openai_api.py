"""OpenAI's images API, by OpenAI's own client."""

import base64
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests.server.conftest import Running, start
from txt2img.images import image_file
from txt2img.images.record import pixels_sha256
from txt2img.pipeline.generate import images_of
from txt2img.request import Request
from txt2img.weights.model import Model

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(serving: Running) -> "openai.OpenAI":
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)


def opened(text: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(text)))


def png(colour: str = "red", size: int = 64, mode: str = "RGB") -> bytes:
    file = BytesIO()
    Image.new(mode, (size, size), colour).save(file, "PNG")
    return file.getvalue()


def test_models_are_listed_and_found(client: "openai.OpenAI", serving: Running) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == serving.service.catalog.default == "tiny-sd1"
    assert client.models.retrieve("tiny-sd1").owned_by == "txt2img"
    with pytest.raises(openai.NotFoundError) as refused:
        client.images.generate(prompt="a cat", model="dall-e-3")
    assert refused.value.code == "model_not_found"


def test_pictures_are_those_of_the_command(client: "openai.OpenAI", sd1_model: Model) -> None:
    answer = client.images.generate(prompt="a cat", n=2, size="64x128", extra_body={"seed": 5})
    assert answer.size == "64x128"
    drawn = [opened(one.b64_json) for one in answer.data]
    request = Request("a cat", seed=5, steps=2, width=64, height=128)
    defaults = sd1_model.family.defaults
    for i, image in enumerate(drawn):
        one = Request.filled(request.changed(seed=5 + i), defaults)
        [expected] = images_of(sd1_model, [one])
        assert pixels_sha256(image) == pixels_sha256(expected)


def test_the_picture_has_its_record_and_no_path(client: "openai.OpenAI", sd1_folder: Path) -> None:
    answer = client.images.generate(prompt="a cat", output_format="webp", extra_body={"seed": 5})
    content = base64.b64decode(answer.data[0].b64_json)
    info = image_file.read_stream(BytesIO(content), "it")
    assert info.request is not None
    assert (info.request.prompt, info.request.seed) == ("a cat", 5)
    assert str(sd1_folder.parent).encode() not in content
    assert Image.open(BytesIO(content)).format == "WEBP"


def test_a_stream_has_partial_pictures_before_the_whole(client: "openai.OpenAI") -> None:
    whole = client.images.generate(prompt="a cat", extra_body={"seed": 5, "steps": 6})
    events = [
        *client.images.generate(
            prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 5, "steps": 6}
        )
    ]
    assert [one.type.partition(".")[2] for one in events] == [*["partial_image"] * 2, "completed"]
    assert [one.partial_image_index for one in events[:2]] == [0, 1]
    assert opened(events[0].b64_json).size == (64, 64)
    assert events[-1].b64_json == whole.data[0].b64_json


def test_an_edit_repaints_where_the_mask_is_transparent(client: "openai.OpenAI") -> None:
    mask = Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    file = BytesIO()
    mask.save(file, "PNG")
    answer = client.images.edit(
        image=("photo.png", png("red"), "image/png"),
        mask=("mask.png", file.getvalue(), "image/png"),
        prompt="a cat",
        extra_body={"seed": 3, "strength": 1.0, "mask_blur": 0},
    )
    edited = opened(answer.data[0].b64_json).convert("RGB")
    assert edited.crop((0, 0, 28, 64)).getcolors() == [(28 * 64, (255, 0, 0))]
    assert edited.crop((36, 0, 64, 64)).getcolors() != [(28 * 64, (255, 0, 0))]


def test_an_edit_without_a_mask_begins_from_the_picture(client: "openai.OpenAI") -> None:
    image = ("../../etc/passwd", png("blue"), "image/png")
    weak = client.images.edit(image=image, prompt="a cat", extra_body={"seed": 3, "strength": 0})
    assert opened(weak.data[0].b64_json).convert("RGB").getpixel((9, 9)) == (0, 0, 255)
    usual = client.images.edit(image=[image], prompt="a cat", extra_body={"seed": 3})
    assert usual.size == "64x64"
    with pytest.raises(openai.BadRequestError, match="looks at no other pictures"):
        client.images.edit(image=[image, image], prompt="a cat", extra_body={"seed": 3})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": "65x64"}, "multiple of 8"),
        ({"size": "huge"}, "512x768"),
        ({"n": 0}, "count"),
        ({"n": 1000}, "at most 64"),
        ({"response_format": "url"}, "b64_json"),
        ({"extra_body": {"steps": 5000}}, "1,000 steps"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"output_format": "bmp"}, "no format"),
        ({"stream": True, "partial_images": 9}, "partial_images"),
    ],
)
def test_mistakes_are_told_in_one_line(
    client: "openai.OpenAI", values: dict[str, object], says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a cat", **values)
    assert says in refused.value.body["message"]
    assert refused.value.body["type"] == "invalid_request_error"
    assert "\n" not in refused.value.body["message"]


def test_a_client_that_goes_stops_its_picture(serving: Running) -> None:
    """At the next step; a queued one is dropped. Others' are drawn."""
    impatient = openai.OpenAI(
        base_url=f"{serving.url}/v1", api_key="none", max_retries=0, timeout=1.0
    )

    def ask() -> None:
        with pytest.raises(openai.APITimeoutError):
            impatient.images.generate(prompt="a cat", n=9, extra_body={"steps": 1000})

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    patient = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)
    assert patient.images.generate(prompt="a cat").data
    deadline = time.monotonic() + 20
    while serving.service.queue.jobs and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not serving.service.queue.jobs
    assert serving.service.metrics.values["jobs_cancelled", ""] == 3


def test_a_stream_that_is_closed_stops_its_picture(serving: Running) -> None:
    client = openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0)
    before = serving.service.metrics.values["jobs_cancelled", ""]
    stream = client.images.generate(
        prompt="a cat", stream=True, partial_images=3, extra_body={"steps": 120}
    )
    assert next(iter(stream)).type == "image_generation.partial_image"
    stream.close()
    deadline = time.monotonic() + 20
    while serving.service.queue.jobs and time.monotonic() < deadline:
        time.sleep(0.05)
    assert serving.service.metrics.values["jobs_cancelled", ""] == before + 1


def test_a_key_is_asked_for(sd1_folder: Path) -> None:
    from txt2img.server.guard import Access

    running, stop = start(str(sd1_folder), access=Access(("first-secret", "second-secret")))
    try:
        for key in ("first-secret", "second-secret"):
            ours = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
            assert ours.models.list().data
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(
                base_url=f"{running.url}/v1", api_key="wrong", max_retries=0
            ).models.list()
        assert refused.value.code == "invalid_api_key"
    finally:
        stop()
