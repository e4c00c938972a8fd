"""Other programs' pictures are read as requests, and what cannot be carried over is told."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sd_parsers import ParserManager

from txt2img.images import image_file
from txt2img.images.record import ImageInfo, Origin
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.adapters import Embedding, Lora, Refiner, VAERef

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
    "a cat", "blurry", "v1-5", 512, 768, 20, 8.0, None, None,
    Sampler.EULER_A, Schedule.KARRAS, 42, loras=(Lora("pixel", 0.8, 0.5),), compat=Compat.COMFYUI,
)  # fmt: skip
SCREEN: dict[str, Any] = {
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
        "a dog", "ugly", "m", 64, 72, 3, 5.0, None, None,
        Sampler.DPMPP_2M, Schedule.SGM_UNIFORM, 7, compat=Compat.COMFYUI,
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


@pytest.mark.parametrize(
    ("kind", "inputs", "field", "value"),
    [
        ("PerturbedAttentionGuidance", {"scale": 3.0}, "pag", 3.0),
        ("RescaleCFG", {"multiplier": 0.7}, "cfg_rescale", 0.7),
        ("APG", {"eta": 0.0, "norm_threshold": 15.0, "momentum": 0.5}, "apg", "0.0,15.0,0.5"),
        ("FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}, "freeu", "1.1,1.2,0.9,0.2,1"),
        ("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, "freeu", "1.3,1.4,0.9,0.2"),
        (
            "DynamicThresholdingSimple",
            {"mimic_scale": 7.0, "threshold_percentile": 1.0},
            "dynamic_thresholding",
            "7.0,1.0",
        ),
    ],
)
def test_guidance_of_a_graph_is_read(
    kind: str, inputs: dict[str, float], field: str, value: object, tmp_path: Path
) -> None:
    model = json.loads(json.dumps(GRAPH))["3"]["inputs"]["model"]
    node = {"class_type": kind, "inputs": {**inputs, "model": model}}
    found = read(tmp_path, changed({"90": node}, model=["90", 0]))
    assert (found.request, found.notes) == (replace(COMFY, **{field: value}), ())


def test_nodes_of_samplers_and_schedules_are_read(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    inputs = graph["3"]["inputs"]
    custom = {name: inputs[name] for name in ("model", "positive", "negative", "latent_image")}
    graph["3"] = {
        "class_type": "SamplerCustom",
        "inputs": {**custom, "noise_seed": 42, "cfg": 8, "sampler": ["91", 0], "sigmas": ["92", 0]},
    }
    graph["91"] = {
        "class_type": "SamplerDPMPP_2M_SDE",
        "inputs": {"solver_type": "heun", "eta": 0.5, "s_noise": 0.9},
    }
    graph["92"] = {
        "class_type": "KarrasScheduler",
        "inputs": {"steps": 20, "sigma_max": 14.6, "sigma_min": 0.03, "rho": 7.0},
    }
    found = read(tmp_path, {"prompt": json.dumps(graph)})
    assert found.request == replace(COMFY, sampler=Sampler.DPMPP_2M_SDE_HEUN, eta=0.5)
    [note] = found.notes
    assert note == "s_noise 0.9 of the node SamplerDPMPP_2M_SDE is not carried over"


def changed(nodes: Mapping[str, object], **inputs: object) -> dict[str, str]:
    """The graph with more nodes, and other inputs of its sampler."""
    graph = json.loads(json.dumps({**GRAPH, **nodes}))
    graph["3"]["inputs"] |= inputs
    return {"prompt": json.dumps(graph)}


def test_a_sampler_that_feeds_no_saved_picture_is_not_read(tmp_path: Path) -> None:
    graph = json.loads(json.dumps(GRAPH))
    other = {"class_type": "KSampler", "inputs": graph["3"]["inputs"] | {"seed": 999, "steps": 5}}
    graph["8"] = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}}
    found = read(tmp_path, {"prompt": json.dumps({"30": other, **graph})})
    assert (found.request, found.notes) == (COMFY, ())


def test_a_node_that_passes_a_prompt_on_has_no_prompt_itself(tmp_path: Path) -> None:
    box = {"clip": ["10", 1], "text": "sun", "conditioning_to": ["6", 0]}
    nodes = {"27": {"class_type": "GLIGENTextBoxApply", "inputs": box}}
    found = read(tmp_path, changed(nodes, positive=["27", 0]))
    assert found.request == COMFY
    assert found.notes == ('the node "GLIGENTextBoxApply" of its prompt is not carried over',)


def test_two_texts_that_differ_are_told(tmp_path: Path) -> None:
    for text, notes in (("a photo", ('text_l "a photo" is not carried over',)), ("a cat", ())):
        texts = {"text_g": "a cat", "text_l": text, "clip": ["10", 1]}
        nodes = {"6": {"class_type": "CLIPTextEncodeSDXL", "inputs": texts}}
        found = read(tmp_path, changed(nodes))
        assert (found.request, found.notes) == (COMFY, notes)


def test_a_second_sampler_with_the_last_steps_is_the_refiner(tmp_path: Path) -> None:
    common = {"steps": 25, "cfg": 8, "sampler_name": "euler", "scheduler": "normal"}
    prompts = {"positive": ["6", 0], "negative": ["7", 0]}
    first = {"noise_seed": 5, "start_at_step": 0, "end_at_step": 20, "latent_image": ["5", 0]}
    last = {"add_noise": "disable", "start_at_step": 20, "end_at_step": 10_000}
    loader = {"ckpt_name": "fine.safetensors"}
    nodes = {
        "3": {
            "class_type": "KSamplerAdvanced",
            "inputs": {**common, **prompts, **first, "model": ["4", 0]},
        },
        "2": {
            "class_type": "KSamplerAdvanced",
            "inputs": {**common, **prompts, **last, "model": ["1", 0], "latent_image": ["3", 0]},
        },
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": loader},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0]}},
    }
    found = read(tmp_path, changed(nodes))
    assert found.request and (found.request.model, found.request.seed) == ("v1-5", 5)
    assert (found.request.refiner, found.request.refiner_switch) == (Refiner("fine"), 0.8)
    assert found.notes == ()


def test_the_first_prompt_of_a_guider_of_two_is_read(tmp_path: Path) -> None:
    graph = {
        **GRAPH,
        "3": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"guider": ["21", 0], "latent_image": ["5", 0]},
        },
        "21": {
            "class_type": "DualCFGGuider",
            "inputs": {"cond1": ["6", 0], "cond2": ["7", 0], "model": ["10", 0]},
        },
    }
    found = read(tmp_path, {"prompt": json.dumps(graph)})
    assert found.request and found.request.prompt == "a cat"
    assert any("cond2" in note for note in found.notes)


def test_a_latent_of_an_unknown_node_has_the_pictures_size(tmp_path: Path) -> None:
    info = PngInfo()
    latent = {"class_type": "EmptyLatentPicker+", "inputs": {"resolution": "64x128"}}
    info.add_text("prompt", changed({"5": latent})["prompt"])
    Image.new("RGB", (64, 128)).save(tmp_path / "x.png", pnginfo=info)
    found = image_file.read(tmp_path / "x.png")
    assert found.request == replace(COMFY, width=64, height=128)
    assert found.notes == ('the node "EmptyLatentPicker+" of its latent is not known',)


def test_the_first_comfyuis_samplers(tmp_path: Path) -> None:
    found = read(tmp_path, changed({}, sampler_name="sample_dpmpp_2m"))
    assert (found.request, found.notes) == (replace(COMFY, sampler=Sampler.DPMPP_2M), ())


def test_learnt_words_of_comfyui(tmp_path: Path) -> None:
    text = {"text": "a cat, (embedding:styles/ink.pt:1.2)", "clip": ["10", 1]}
    found = read(tmp_path, changed({"6": {"class_type": "CLIPTextEncode", "inputs": text}}))
    assert found.request and found.request.prompt == "a cat, (ink:1.2)"
    assert found.request.embeddings == (Embedding("ink"),)


def test_samplers_of_parts_are_read_from_the_screen(tmp_path: Path) -> None:
    slots = ("model", "positive", "negative", "sampler", "sigmas", "latent_image")
    screen = {
        "nodes": [
            *SCREEN["nodes"][1:],
            {"id": 14, "type": "KSamplerSelect", "widgets_values": ["euler_ancestral"]},
            {"id": 22, "type": "SDTurboScheduler", "widgets_values": [1, 1]},
            {
                "id": 13,
                "type": "SamplerCustom",
                "inputs": [{"name": name, "link": i} for i, name in enumerate(slots)],
                "widgets_values": [True, 77, "fixed", 1],
            },
        ],
        "links": [[i, node, 0, 13, i, "X"] for i, node in enumerate((5, 2, 3, 14, 22, 4))],
    }
    found = read(tmp_path, {"workflow": json.dumps(screen)})
    assert found.request == Request(
        "a dog", "ugly", "m", 64, 72, 1, 1.0, None, None,
        Sampler.EULER_A, None, 77, compat=Compat.COMFYUI,
    )  # fmt: skip
    screen["nodes"][-2] |= {"type": "UnknownScheduler"}
    notes = read(tmp_path, {"workflow": json.dumps(screen)}).notes
    assert 'the settings of the node "UnknownScheduler" are not known' in notes


def test_novelai(tmp_path: Path) -> None:
    texts = {"Software": "NovelAI", "Description": "{a girl}", "Comment": json.dumps(NOVELAI)}
    found = read(tmp_path, texts)
    assert found.request == Request(
        "(a girl:1.05)", "lowres", "", 512, 640, 28, 11.0, None, None,
        Sampler.EULER_A, Schedule.KARRAS, 9, compat=Compat.NOVELAI, clip_skip=2,
    )  # fmt: skip
    assert {"sm True is not carried over"} < set(found.notes)
    assert any("{emphasis}" in note for note in found.notes)


def test_invokeai(tmp_path: Path) -> None:
    found = read(tmp_path, {"invokeai_metadata": json.dumps(INVOKEAI)})
    assert found.request == Request(
        "a fox", "dull", "dreams", 512, 512, 30, 7.5, None, None,
        Sampler.DPMPP_2M, Schedule.KARRAS, 5, loras=(Lora("line", 0.75, 0.75),),
        compat=Compat.INVOKEAI,
    )  # fmt: skip
    assert "seamless_x True is not carried over" in found.notes
    assert not any("generation_mode" in note or "clip_skip" in note for note in found.notes)


def test_fooocus_gives_the_hash_of_its_model(tmp_path: Path) -> None:
    table = {**FOOOCUS, "base_model_hash": "aeb7e9e689"}
    texts = {"parameters": json.dumps(table), "fooocus_scheme": "fooocus"}
    assert read(tmp_path, texts).origin.hash == "aeb7e9e689"


def test_fooocus(tmp_path: Path) -> None:
    found = read(tmp_path, {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"})
    assert found.request == Request(
        "a fox", "", "jugger", 896, 1152, 30, 4.0, None, None,
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
        "a cat", "blurry", "foo", 64, 128, 20, 7.0, None, None,
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


@pytest.mark.parametrize(
    "texts",
    [
        {
            "Software": "NovelAI",
            "Source": "Stable Diffusion 1D44365E",
            "Description": "a girl",
            "Comment": json.dumps(NOVELAI),
        },
        {"invokeai_metadata": json.dumps(INVOKEAI)},
    ],
    ids=["NovelAI", "InvokeAI"],
)
def test_a_public_parser_reads_others_as_we_do(tmp_path: Path, texts: dict[str, str]) -> None:
    ours, theirs = read(tmp_path, texts).request, ParserManager().parse(tmp_path / "x.png")
    assert ours is not None and theirs is not None
    [sampler] = theirs.samplers
    assert [str(one) for one in sampler.prompts] == [ours.prompt]
    assert [str(one) for one in sampler.negative_prompts] == [ours.negative]
    said = {"seed": ours.seed, "steps": ours.steps, "cfg_scale": ours.cfg}
    assert sampler.parameters.items() <= said.items()


RING = {str(i): {"class_type": "X", "inputs": {"model": [str(i + 1), 0]}} for i in range(3)}
RING["3"] = {"class_type": "KSampler", "inputs": {"model": ["0", 0], "steps": ["3", 0]}}


@pytest.mark.parametrize("key", ["prompt", "workflow", "invokeai_metadata"])
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
