"""Other programs' pictures are read as requests, and what cannot be carried over is told."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from txt2img.images import image_file
from txt2img.images.record import ImageInfo, Origin
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.adapters import Lora, Refiner, VAERef

GRAPH: dict[str, dict[str, object]] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 42,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler_ancestral",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/v1-5.safetensors"}},
    "5": {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 512, "height": 768, "batch_size": 1},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["10", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "styles\\pixel.safetensors",
            "strength_model": 0.8,
            "strength_clip": 0.5,
            "model": ["4", 0],
            "clip": ["4", 1],
        },
    },
    "11": {"class_type": "PrimitiveString", "inputs": {"value": "blurry"}},
    "12": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}
COMFY = Request(
    "a cat", "blurry", "v1-5", 512, 768, 20, 8.0, 0.0, None,
    Sampler.EULER_A, Schedule.KARRAS, 42, loras=(Lora("pixel", 0.8, 0.5),), compat=Compat.COMFYUI,
)  # fmt: skip
SCREEN = {
    "nodes": [
        {
            "id": 1,
            "type": "KSampler",
            "widgets_values": [7, "randomize", 3, 5, "dpmpp_2m", "sgm_uniform", 1],
            "inputs": [
                {"name": "positive", "link": 1},
                {"name": "negative", "link": 2},
                {"name": "latent_image", "link": 3},
                {"name": "model", "link": 4},
            ],
        },
        {"id": 2, "type": "CLIPTextEncode", "widgets_values": ["a dog"], "inputs": []},
        {"id": 3, "type": "CLIPTextEncode", "widgets_values": ["ugly"], "inputs": []},
        {"id": 4, "type": "EmptyLatentImage", "widgets_values": [64, 72, 1]},
        {"id": 5, "type": "CheckpointLoaderSimple", "widgets_values": ["m.ckpt"]},
    ],
    "links": [[1, 2, 0, 1, 1, "X"], [2, 3, 0, 1, 2, "X"], [3, 4, 0, 1, 3, "X"], [4, 5, 0, 1, 0]],
}
NOVELAI = {
    "steps": 28,
    "sampler": "k_euler_ancestral",
    "seed": 9,
    "scale": 11.0,
    "uc": "lowres",
    "width": 512,
    "height": 640,
    "noise_schedule": "karras",
    "sm": True,
}
INVOKEAI = {
    "positive_prompt": "a fox",
    "negative_prompt": "dull",
    "width": 512,
    "height": 512,
    "seed": 5,
    "cfg_scale": 7.5,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "clip_skip": 0,
    "generation_mode": "txt2img",
    "model": {"name": "dreams", "hash": "blake3:00"},
    "loras": [{"model": {"name": "line"}, "weight": 0.75}],
    "seamless_x": True,
}
INVOKEAI_2 = {
    "model_weights": "stable-diffusion-1.5",
    "image": {
        "prompt": [{"prompt": "a fox [dull] in snow", "weight": 1}],
        "steps": 50,
        "cfg_scale": 7.5,
        "width": 512,
        "height": 512,
        "seed": 6,
        "sampler": "k_lms",
    },
}
FOOOCUS = {
    "prompt": "a fox",
    "negative_prompt": "",
    "steps": 30,
    "seed": "12",
    "sharpness": 2.0,
    "resolution": "(896, 1152)",
    "guidance_scale": 4.0,
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "base_model": "jugger.safetensors",
    "loras": [["off", 0.1, "ab"]],
}
EASY = {
    "prompt": "a fox",
    "negative_prompt": "dull",
    "seed": "3",
    "num_inference_steps": "25",
    "guidance_scale": "7.5",
    "width": "512",
    "height": "512",
    "sampler_name": "euler_a",
    "use_stable_diffusion_model": "C:\\models\\sd-v1-4.ckpt",
    "use_vae_model": "v/mse.pt",
}


def read(folder: Path, texts: Mapping[str, str]) -> ImageInfo:
    """What an 8x8 picture with these texts says."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(folder / "x.png", pnginfo=info)
    return image_file.read(folder / "x.png")


def test_a_graph_of_comfyui_is_followed_from_its_sampler(tmp_path: Path) -> None:
    found = read(tmp_path, {"prompt": json.dumps(GRAPH), "workflow": json.dumps(SCREEN)})
    assert found.request == COMFY
    assert found.origin.model == "v1-5"


def test_a_graph_of_the_screen_is_read_too(tmp_path: Path) -> None:
    request = read(tmp_path, {"workflow": json.dumps(SCREEN)}).request
    assert request == Request(
        "a dog", "ugly", "m", 64, 72, 3, 5.0, 0.0, None,
        Sampler.DPMPP_2M, Schedule.TRAILING, 7, compat=Compat.COMFYUI,
    )  # fmt: skip


def test_what_a_graph_has_beside_it_is_told(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"] |= {"denoise": 0.5, "positive": ["20", 0], "negative": ["21", 0]}
    graph["20"] = {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0]}}
    graph["21"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}}
    found = read(tmp_path, {"prompt": json.dumps(graph)})
    assert found.request and (found.request.prompt, found.request.negative) == ("a cat", "")
    told = "\n".join(found.notes)
    for what in ("denoise 0.5", '"ControlNetApply"', "zeroed"):
        assert told.count(what) == 1


def test_samplers_of_parts_are_followed(tmp_path: Path) -> None:
    graph = {key: node for key, node in GRAPH.items() if key != "3"} | {
        "1": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["a", 0],
                "guider": ["b", 0],
                "sampler": ["c", 0],
                "sigmas": ["d", 0],
                "latent_image": ["5", 0],
            },
        },
        "a": {"class_type": "RandomNoise", "inputs": {"noise_seed": 42}},
        "b": {
            "class_type": "CFGGuider",
            "inputs": {"cfg": 8.0, "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0]},
        },
        "c": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler_ancestral"}},
        "d": {"class_type": "BasicScheduler", "inputs": {"scheduler": "karras", "steps": 20}},
    }
    assert read(tmp_path, {"prompt": json.dumps(graph)}).request == COMFY


def test_novelai(tmp_path: Path) -> None:
    texts = {"Software": "NovelAI", "Description": "{a girl}", "Comment": json.dumps(NOVELAI)}
    found = read(tmp_path, texts)
    assert found.request == Request(
        "(a girl:1.05)", "lowres", "", 512, 640, 28, 11.0, 0.0, None,
        Sampler.EULER_A, Schedule.KARRAS, 9, compat=Compat.NOVELAI, clip_skip=2,
    )  # fmt: skip
    assert {"sm True is not carried over"} < set(found.notes)
    assert any("{emphasis}" in note for note in found.notes)


def test_invokeai(tmp_path: Path) -> None:
    found = read(tmp_path, {"invokeai_metadata": json.dumps(INVOKEAI)})
    assert found.request == Request(
        "a fox", "dull", "dreams", 512, 512, 30, 7.5, 0.0, None,
        Sampler.DPMPP_2M, Schedule.KARRAS, 5, loras=(Lora("line", 0.75, 0.75),),
        compat=Compat.INVOKEAI,
    )  # fmt: skip
    assert "seamless_x True is not carried over" in found.notes
    assert not any("generation_mode" in note or "clip_skip" in note for note in found.notes)


def test_invokeai_2_writes_what_is_not_wanted_in_brackets(tmp_path: Path) -> None:
    found = read(tmp_path, {"sd-metadata": json.dumps(INVOKEAI_2)})
    assert found.request == Request(
        "a fox in snow", "dull", "stable-diffusion-1.5", 512, 512, 50, 7.5, sampler=Sampler.LMS,
        seed=6, compat=Compat.INVOKEAI,
    )  # fmt: skip


def test_fooocus(tmp_path: Path) -> None:
    found = read(tmp_path, {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"})
    assert found.request == Request(
        "a fox", "", "jugger", 896, 1152, 30, 4.0, 0.0, None,
        Sampler.DPMPP_2M_SDE, Schedule.KARRAS, 12, loras=(Lora("off", 0.1, 0.1),),
        compat=Compat.COMFYUI,
    )  # fmt: skip
    assert "sharpness 2.0 is not carried over" in found.notes


def test_a_refiner_of_fooocus_or_invokeai(tmp_path: Path) -> None:
    said = FOOOCUS | {"refiner_model": "models/fine.safetensors", "refiner_switch": 0.6}
    found = read(tmp_path, {"parameters": json.dumps(said)})
    assert found.request is not None
    assert (found.request.refiner, found.request.refiner_switch) == (Refiner("fine"), 0.6)
    none = read(tmp_path, {"parameters": json.dumps(said | {"refiner_model": "None"})})
    assert none.request is not None and none.request.refiner is None
    words = {"positive_prompt": "a fox", "refiner_model": {"name": "xl-refiner"}}
    text = json.dumps(words | {"refiner_start": 0.75})
    other = read(tmp_path, {"invokeai_metadata": text}).request
    assert other is not None
    assert (other.refiner, other.refiner_switch) == (Refiner("xl-refiner"), 0.75)


def test_fooocus_vae_and_clip_skip_are_carried_over_and_the_rest_told(tmp_path: Path) -> None:
    more = {"clip_skip": 3, "vae": "ink-vae", "freeu": "(1.01, 1.02)", "metadata_scheme": "fooocus"}
    found = read(tmp_path, {"parameters": json.dumps(FOOOCUS | more)})
    assert found.request is not None
    assert (found.request.clip_skip, found.request.vae) == (3, VAERef("ink-vae"))
    assert any(note.startswith("freeu") for note in found.notes)
    found = read(tmp_path, {"parameters": json.dumps(FOOOCUS | {"vae": "Default (model)"})})
    assert found.request is not None and found.request.vae is None


SWARMUI = {
    "prompt": "a cat",
    "negativeprompt": "blurry",
    "model": "sd/foo",
    "width": 64,
    "height": 128,
    "seed": 5,
    "steps": 20,
    "cfgscale": 7.0,
    "sampler": "euler_ancestral",
    "scheduler": "karras",
    "loras": ["styles/ink"],
    "loraweights": ["0.5"],
    "swarm_version": "0.9.6",
    "freeuversion": "2",
}


def test_swarmui(tmp_path: Path) -> None:
    found = read(tmp_path, {"parameters": json.dumps({"sui_image_params": SWARMUI}, indent=2)})
    assert found.request == Request(
        "a cat", "blurry", "foo", 64, 128, 20, 7.0, 0.0, None,
        Sampler.EULER_A, Schedule.KARRAS, 5, loras=(Lora("ink", 0.5, 0.5),),
        compat=Compat.COMFYUI,
    )  # fmt: skip
    assert found.notes == ('freeuversion "2" is not carried over',)


def test_json_of_an_unknown_program_is_told_and_not_drawn(tmp_path: Path) -> None:
    found = read(tmp_path, {"parameters": '{"text": "a cat"}'})
    assert found.request is None and "not known" in found.notes[0]


def test_a_prompt_may_begin_with_a_brace(tmp_path: Path) -> None:
    line = "Steps: 3, Sampler: Euler, Seed: 4, Size: 64x64, Model: foo, Version: v1.10.1"
    request = read(tmp_path, {"parameters": f"{{red}} cat\n{line}"}).request
    assert request and (request.prompt, request.seed) == ("{red} cat", 4)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
@pytest.mark.parametrize("text", [json.dumps(FOOOCUS), "a fox\nSteps: 30, Seed: 12, Size: 64x64"])
def test_a_comment_in_exifs_main_directory_is_read(tmp_path: Path, suffix: str, text: str) -> None:
    exif = Image.Exif()
    exif[0x9286] = text
    Image.new("RGB", (64, 64)).save(tmp_path / f"x.{suffix}", exif=exif)
    request = image_file.read(tmp_path / f"x.{suffix}").request
    assert request and (request.prompt, request.steps, request.seed) == ("a fox", 30, 12)


def test_a_size_that_only_the_file_has_is_taken(tmp_path: Path) -> None:
    comment = {key: value for key, value in NOVELAI.items() if key not in ("width", "height")}
    info = PngInfo()
    info.add_text("Software", "NovelAI")
    info.add_text("Comment", json.dumps(comment))
    for size, taken in (((64, 128), (64, 128)), ((60, 128), (None, None))):
        Image.new("RGB", size).save(tmp_path / "x.png", pnginfo=info)
        found = image_file.read(tmp_path / "x.png")
        assert found.request and (found.request.width, found.request.height) == taken
        assert any("records no size" in note for note in found.notes) == (taken[0] is None)


def test_easy_diffusion(tmp_path: Path) -> None:
    assert read(tmp_path, EASY).request == Request(
        "a fox", "dull", "sd-v1-4", 512, 512, 25, 7.5, sampler=Sampler.EULER_A, seed=3,
        vae=VAERef("mse.pt"),
    )  # fmt: skip


def test_what_cannot_be_drawn_is_told_and_left_to_the_model(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"] |= {"sampler_name": "dpm_adaptive\x1b[31m", "seed": -1, "steps": []}
    found = read(tmp_path, {"prompt": json.dumps(graph)})
    assert found.request and found.request.sampler is None and found.request.seed is None
    assert "\x1b" not in "".join(found.notes)


def test_no_name_leads_anywhere(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["4"]["inputs"]["ckpt_name"] = "../../etc/x.safetensors"
    graph["10"]["inputs"]["lora_name"] = "..\\..\\y.safetensors"
    request = read(tmp_path, {"prompt": json.dumps(graph)}).request
    assert request and (request.model, request.loras[0].name) == ("x", "y")


@pytest.mark.parametrize("prompt", ["a cat, in a hat", "ä 苹果"])
def test_a_public_parser_reads_what_we_write(tmp_path: Path, prompt: str) -> None:
    request = replace(COMFY, prompt=prompt, loras=(), model="m")
    data = image_file.encode(Image.new("RGB", (8, 8)), request, Origin("m", "0123456789"))
    (tmp_path / "x.png").write_bytes(data)
    found = ParserManager().parse(tmp_path / "x.png")
    assert found is not None
    [sampler] = found.samplers
    assert [str(one) for one in sampler.prompts] == [prompt]
    assert [str(one) for one in sampler.negative_prompts] == ["blurry"]
    assert sampler.model and (sampler.model.name, sampler.model.hash) == ("m", "0123456789")
    said = {name: str(sampler.parameters[name]) for name in ("seed", "steps", "cfg_scale")}
    assert said == {"seed": "42", "steps": "20", "cfg_scale": "8.0"}


RING = {str(i): {"class_type": "X", "inputs": {"model": [str(i + 1), 0]}} for i in range(3)}
RING["3"] = {"class_type": "KSampler", "inputs": {"model": ["0", 0], "steps": ["3", 0]}}


@pytest.mark.parametrize("key", ["prompt", "workflow", "invokeai_metadata", "sd-metadata"])
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[]",
        '{"a":' * 100_000,
        '{"nodes": [1, {"id": []}], "links": [[], [[]], 3]}',
        '{"1": {"class_type": "KSampler", "inputs": []}}',
        '{"1": {"class_type": ["KSampler"], "inputs": {"model": [["1"], 0]}}}',
        '{"image": {"prompt": [3, {}]}, "model": [], "loras": [3, {}, {"model": {}}]}',
        json.dumps(RING),
        json.dumps({str(i): {"inputs": {}} for i in range(20_000)}),
    ],
)
def test_broken_texts_do_no_harm(tmp_path: Path, key: str, text: str) -> None:
    start = time.process_time()
    found = read(tmp_path, {key: text})
    assert found.request is None or found.notes or found.request.prompt == ""
    assert time.process_time() - start < 10  # not quadratic, on any machine
