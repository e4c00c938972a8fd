"""A1111's API, by a public client of it."""

import base64
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.server.conftest import Running, start
from txt2img.images import image_file
from txt2img.images.preprocess import preprocess
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.request.sampler_names import Sampler

webuiapi = pytest.importorskip("webuiapi")
SMALL = {"width": 64, "height": 64, "steps": 2}


@pytest.fixture(scope="module")
def client(serving: Running) -> "webuiapi.WebUIApi":
    return webuiapi.WebUIApi(port=serving.port)


def wait_for_step(serving: Running) -> None:
    """Until a picture's first step is done."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (job := serving.service.queue.running) and job.step:
            return
        time.sleep(0.01)
    raise AssertionError("no step was done")


def test_a_picture_is_drawn_with_its_text(client: "webuiapi.WebUIApi") -> None:
    result = client.txt2img(
        prompt="a dog", negative_prompt="cat", seed=7, batch_size=2, sampler_name="DPM++ 2M",
        scheduler="Karras", cfg_scale=5, **SMALL
    )  # fmt: skip
    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [7, 8]
    assert result.info["sampler_name"] == "DPM++ 2M"
    assert result.info["infotexts"][0] == result.image.info["parameters"]
    assert "Schedule type: Karras" in result.image.info["parameters"]
    assert "Negative prompt: cat" in result.image.info["parameters"]
    read = client.png_info(result.image)
    assert read.info == result.image.info["parameters"]
    assert read.parameters["Seed"] == "7"


def test_a_picture_is_drawn_from_another(client: "webuiapi.WebUIApi") -> None:
    red = Image.new("RGB", (64, 64), "red")
    same = client.img2img(images=[red], prompt="a dog", denoising_strength=0.0, seed=1, **SMALL)
    assert same.image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
    half = Image.new("L", (64, 64))
    half.paste(255, (32, 0, 64, 64))
    masked = client.img2img(
        images=[red], mask_image=half, mask_blur=0, inpainting_fill=1, inpaint_full_res=False,
        prompt="a dog", denoising_strength=1.0, seed=1, **SMALL
    )  # fmt: skip
    left = masked.image.convert("RGB").crop((0, 0, 30, 64))
    assert left.getcolors() == [(30 * 64, (255, 0, 0))]
    assert masked.image.convert("RGB").getpixel((50, 30)) != (255, 0, 0)


def test_a_second_pass_is_drawn(client: "webuiapi.WebUIApi") -> None:
    result = client.txt2img(
        prompt="a dog", enable_hr=True, hr_scale=2, hr_upscaler="Latent", denoising_strength=0.5,
        seed=1, **SMALL
    )  # fmt: skip
    assert result.image.size == (128, 128)
    assert "Hires upscale: 2" in result.info["infotexts"][0]


def test_progress_is_read_and_the_picture_interrupted(
    client: "webuiapi.WebUIApi", serving: Running
) -> None:
    """What is there of the picture comes back, as in A1111, but without a record."""
    results = []
    drawing = threading.Thread(
        target=lambda: results.append(
            client.txt2img(prompt="a dog", width=64, height=64, steps=900)
        )
    )
    drawing.start()
    wait_for_step(serving)
    other = webuiapi.WebUIApi(port=serving.port)
    first = other.get_progress()
    assert 0 < first["progress"] < 1
    assert first["state"]["sampling_steps"] == 900
    time.sleep(0.5)
    shown = other.get_progress()["current_image"]
    assert Image.open(BytesIO(base64.b64decode(shown))).size == (64, 64)
    other.interrupt()
    drawing.join(timeout=30)
    [result] = results
    assert result.info["interrupted"]
    assert result.image.size == (64, 64)
    assert "parameters" not in result.image.info
    other.util_wait_for_ready()


def test_interrupt_leaves_other_apis_jobs_alone(serving: Running) -> None:
    answers = []
    ask = {"prompt": "a dog", "steps": 20}
    drawing = threading.Thread(
        target=lambda: answers.append(
            requests.post(f"{serving.url}/v1/images/generations", json=ask, timeout=60)
        )
    )
    drawing.start()
    wait_for_step(serving)
    assert requests.post(f"{serving.url}/sdapi/v1/interrupt", timeout=5).status_code == 200
    drawing.join()
    assert answers[0].status_code == 200
    content = base64.b64decode(answers[0].json()["data"][0]["b64_json"])
    request = image_file.read_stream(BytesIO(content), "it").request
    assert request is not None and request.steps == 20


def test_lists_have_names_that_calls_take(client: "webuiapi.WebUIApi") -> None:
    assert {row["name"] for row in client.get_samplers()} == {one.label for one in Sampler}
    schedulers = [row["name"] for row in client.get_schedulers()]
    for name in schedulers:
        assert client.txt2img(prompt="a", scheduler=name, seed=1, **SMALL).images
    assert "few-steps" in [row["name"] for row in client.get_loras()]
    assert {"None", "Lanczos"} <= {row["name"] for row in client.get_upscalers()}
    assert "Latent" in [row["name"] for row in client.get_latent_upscale_modes()]
    assert client.get_embeddings()["loaded"] == {}
    assert client.get_sd_vae() == client.get_hypernetworks() == []


def test_the_model_is_chosen_by_name(client: "webuiapi.WebUIApi", serving: Running) -> None:
    assert client.util_get_current_model() == "tiny-sd1"
    assert client.util_get_model_names() == ["default", "tiny-sd1"]
    client.util_set_model("default")
    try:
        assert client.util_get_current_model() == "default"
    finally:
        client.util_set_model("tiny-sd1")
    refused = client.set_options({"sd_model_checkpoint": "/etc/passwd"})
    assert refused["detail"].startswith("no model")
    once = client.txt2img(
        prompt="a", seed=1, override_settings={"sd_model_checkpoint": "tiny-sd1"}, **SMALL
    )
    assert once.info["sd_model_name"] == "tiny-sd1"


def test_a_picture_is_upscaled_and_keeps_its_text(client: "webuiapi.WebUIApi") -> None:
    drawn = client.txt2img(prompt="a dog", seed=7, **SMALL).image
    large = client.extra_single_image(drawn, upscaler_1="Lanczos", upscaling_resize=3).image
    assert large.size == (192, 192)
    assert large.info["parameters"].startswith("a dog")
    same = client.extra_single_image(drawn, upscaler_1="None").image
    assert same.tobytes() == drawn.tobytes()


@pytest.mark.parametrize(
    ("call", "values", "status", "says"),
    [
        ("txt2img", {"prompt": "a", "width": 65}, 400, "multiple of 8"),
        ("txt2img", {"prompt": "a", "sampler_name": "PLMS?"}, 400, "no sampler"),
        ("txt2img", {"prompt": "<lora:nothing:1>"}, 404, "no LoRA"),
        ("txt2img", {"prompt": "a", "override_settings": {"sd_vae": 1, "x": 2}}, 400, '"x"'),
        ("img2img", {"prompt": "a"}, 404, "Init image not found"),
        ("img2img", {"prompt": "a", "init_images": ["/etc/passwd"]}, 400, "not by name"),
        ("img2img", {"prompt": "a", "init_images": ["A" * 300]}, 400, "no picture"),
        ("png-info", {"image": "http://127.0.0.1/a.png"}, 400, "base64"),
        ("extra-single-image", {"image": ""}, 400, "picture"),
    ],
)
def test_mistakes_have_a1111s_shape(
    serving: Running, call: str, values: dict[str, object], status: int, says: str
) -> None:
    answer = requests.post(f"{serving.url}/sdapi/v1/{call}", json=values, timeout=30)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    assert {"error", "detail", "body", "errors"} == answer.json().keys()


def test_a_controlnet_is_used_by_the_name_that_is_offered(sd1_folder: Path) -> None:
    from tests.support import tiny_control
    from txt2img.request.resolve import AdapterPaths

    library = AdapterPaths(controls={"tiny-canny": tiny_control.control("sd1").file})
    running, stop = start(str(sd1_folder), library)
    try:
        client = webuiapi.WebUIApi(port=running.port)
        edges = Image.effect_noise((64, 64), 90)
        drawn = {}
        for weight in (0.0, 1.0):
            unit = webuiapi.ControlNetUnit(image=edges, model="tiny-canny [0123]", weight=weight)
            result = client.txt2img(prompt="a", seed=1, controlnet_units=[unit], **SMALL)
            drawn[weight] = result.image.tobytes()
        assert drawn[0.0] != drawn[1.0]
        assert "ControlNet 0" in result.info["infotexts"][0]
        assert client.controlnet_version() == 3 and "canny" in client.controlnet_module_list()
        assert client.controlnet_model_list() == ["tiny-canny"]
        own, other = (webuiapi.ControlNetUnit(image=x, model="tiny-canny") for x in (None, edges))
        from_edges = [
            client.img2img(images=[edges], prompt="a", seed=1, controlnet_units=[unit], **SMALL)
            for unit in (own, other)
        ]
        assert from_edges[0].image.tobytes() == from_edges[1].image.tobytes()
        with pytest.raises(RuntimeError, match="ControlNet 0 has no image"):
            client.txt2img(prompt="a", controlnet_units=[own], **SMALL)
        other = webuiapi.ControlNetUnit(image=edges, model="../other-canny")
        with pytest.raises(RuntimeError, match="is offered here"):
            client.txt2img(prompt="a", controlnet_units=[other], **SMALL)
    finally:
        stop()


def test_a_controlnets_map_is_drawn_as_the_command_draws_it(serving: Running) -> None:
    client = webuiapi.WebUIApi(port=serving.port)
    photo = Image.effect_noise((64, 96), 90).convert("RGB")
    found = client.controlnet_detect([photo, photo], "canny", 128, 20, 60)
    how = Preprocess(Preprocessor.CANNY, (20, 60))
    large = photo.resize((128, 192), Image.Resampling.BICUBIC)
    assert found.info == "Success" and len(found.images) == 2
    assert found.images[1].tobytes() == preprocess(large, how).tobytes()
    plain = client.controlnet_detect([photo], "none", 64)
    assert plain.image.tobytes() == photo.tobytes()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"controlnet_module": "canny"}, "controlnet_input_images"),
        ({"controlnet_module": "canny", "controlnet_input_images": ["x"]}, "as base64"),
        ({"controlnet_module": "depth"}, "needs a model"),
        ({"controlnet_module": "cany"}, "did you mean canny"),
        ({"controlnet_processor_res": 10**6}, "controlnet_processor_res is 64"),
    ],
)
def test_a_map_that_cannot_be_drawn_is_refused(
    values: dict[str, object], says: str, serving: Running
) -> None:
    answer = requests.post(f"{serving.url}/controlnet/detect", json=values, timeout=30)
    assert answer.status_code == 400 and says in answer.json()["detail"]
