"""Other programs' ControlNets: what their records say of them, and what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.images.metadata.test_began_from import a1111, comfyui, graph
from tests.images.metadata.test_readers import INVOKEAI, read
from txt2img.errors import BadFile, BadRequest
from txt2img.images.input_image import resolve_images
from txt2img.request import Request
from txt2img.request.control import ControlMode
from txt2img.request.input_image import UNNAMED, ImagePaths, Resize
from txt2img.request.prompt_file import parse_prompts

UNIT = (
    "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8, Resize Mode: Resize "
    "and Fill, Processor Res: 512, Threshold A: 50, Threshold B: 180, Guidance Start: 0, "
    "Guidance End: 0.7, Pixel Perfect: True, Control Mode: My prompt is more important"
)
# As the extension wrote them in May, in April and in February of 2023.
MAY = (
    "preprocessor: canny, model: control_v11p_sd15_canny [d14c016b], weight: 0.8, "
    "starting/ending: (0, 0.7), resize mode: Resize and Fill, pixel perfect: True, control mode: "
    "My prompt is more important, preprocessor params: (512, 50, 180)"
)
APRIL = {
    "Enabled": "True", "Module": "canny", "Model": "control_v11p_sd15_canny [d14c016b]",
    "Weight": "0.8", "Guidance Start": "0", "Guidance End": "0.7",
}  # fmt: skip
FEBRUARY = {
    "Enabled": "True", "Module": "canny", "Model": "control_canny-fp16 [e3fe7712]",
    "Weight": "1", "Guidance Strength": "0.7",
}  # fmt: skip


def told(request: Request) -> tuple[str, list[str]]:
    """The ControlNets and the preprocessors as options' texts."""
    return ", ".join(map(str, request.controls)), [str(one) for one in request.preprocess]


@pytest.mark.parametrize(
    ("text", "control", "module", "is_whole"),
    [
        (f'ControlNet 0: "{UNIT}"', "control_v11p_sd15_canny:?:0.8:0..0.7", "canny:50,180", True),
        (f'ControlNet 0: "{MAY}"', "control_v11p_sd15_canny:?:0.8:0..0.7", "canny:50,180", True),
        (
            ", ".join(f"ControlNet-1 {name}: {value}" for name, value in APRIL.items()),
            *("control_v11p_sd15_canny:?:0.8:0..0.7", "canny", False),
        ),
        (
            ", ".join(f"ControlNet {name}: {value}" for name, value in FEBRUARY.items()),
            *("control_canny-fp16:?:1:0..0.7", "canny", False),
        ),
    ],
)
def test_a1111s_units_of_all_times_are_read(
    text: str, control: str, module: str, is_whole: bool
) -> None:
    request, notes = a1111(text)
    assert (told(request), notes) == ((control, [module]), [])
    assert len(request.controls[0].model.hash) == 8
    if is_whole:
        assert (request.control_mode, request.resize) == (ControlMode.PROMPT, Resize.FILL)


def test_units_that_are_off_or_of_nothing_are_no_controls() -> None:
    off = ", ".join(f"ControlNet-0 {k}: {v}" for k, v in {**APRIL, "Enabled": "False"}.items())
    assert told(a1111(off)[0]) == ("", [])
    never, notes = a1111(f'ControlNet 0: "{UNIT.replace("Start: 0", "Start: 0.7")}"')
    assert not never.controls and notes == ["ControlNet 0 is on from 0.7 to 0.7: never"]
    _, notes = a1111('ControlNet 0: "Module: reference_only, Model: None, Weight: 1"')
    assert notes == ['ControlNet 0: "reference_only" without a model is not carried over']


def test_modules_with_weights_need_their_map_as_the_picture() -> None:
    pose = UNIT.replace("canny,", "openpose_full,", 1)
    depth = UNIT.replace("canny,", "depth_midas,", 1).replace("My prompt is", "ControlNet is")
    request, notes = a1111(f'ControlNet 0: "{pose}", ControlNet 1: "{depth}"')
    assert len(request.controls) == 2 and not request.preprocess
    assert request.control_mode is ControlMode.PROMPT
    assert "openpose_full" in notes[0] and notes[0].endswith("its picture must be the map")
    assert notes[1].endswith("or say --preprocess depth:FOLDER")
    assert notes[2] == "its ControlNets' modes differ; all are drawn as the first: prompt"
    with pytest.raises(BadFile, match="does not name the picture of a ControlNet") as caught:
        resolve_images(request, ImagePaths())
    assert "--control control_v11p_sd15_canny:IMAGE" in str(caught.value)


def controlled() -> dict[str, Any]:
    """A graph with two ControlNets, one behind the other, of a picture and of its edges."""
    nodes = graph(denoise=1.0, latent_image=["5", 0], scheduler="normal")
    nodes["3"]["inputs"] |= {"positive": ["41", 0], "negative": ["41", 1]}
    prompt, negative = ["6", 0], ["7", 0]
    nodes["40"] = {"class_type": "ControlNetApply", "inputs": {"conditioning": prompt}}
    nodes["40"]["inputs"] |= {"control_net": ["42", 0], "image": ["44", 0], "strength": 0.6}
    nodes["41"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["40", 0]}}
    nodes["41"]["inputs"] |= {"negative": negative, "control_net": ["43", 0], "image": ["45", 0]}
    nodes["41"]["inputs"] |= {"strength": 1.0, "start_percent": 0.0, "end_percent": 0.5}
    nodes["42"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "t2i/d.pth"}}
    nodes["43"] = {"class_type": "SetUnionControlNetType", "inputs": {"control_net": ["46", 0]}}
    nodes["43"]["inputs"]["type"] = "canny/lineart/anime_lineart/mlsd"
    nodes["44"] = {"class_type": "LoadImage", "inputs": {"image": "sub/depth.png"}}
    nodes["45"] = {"class_type": "CannyEdgePreprocessor", "inputs": {"image": ["47", 0]}}
    nodes["45"]["inputs"] |= {"low_threshold": 30, "high_threshold": 90, "resolution": 512}
    nodes["46"] = {
        "class_type": "ControlNetLoader",
        "inputs": {"control_net_name": "u.safetensors"},
    }
    nodes["47"] = {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}
    return nodes


def test_comfyuis_control_nets_are_followed_to_their_pictures(tmp_path: Path) -> None:
    request, notes = comfyui(tmp_path, controlled())
    controls = "d:depth.png:0.6, u:photo.png:canny:1:0..0.5"
    assert told(request) == (controls, ["none", "canny:30,90"])
    assert (request.prompt != "", request.negative != "") == (True, True)
    assert not notes
    other = controlled()
    other["3"]["inputs"]["scheduler"] = "karras"
    other["45"] = {"class_type": "DWPreprocessor", "inputs": {"image": ["47", 0]}}
    other["44"] = {"class_type": "SomeCamera", "inputs": {}}
    request, notes = comfyui(tmp_path, other)
    assert told(request) == ("d:?:0.6, u:photo.png:canny:1:0..0.5", [])
    assert any('"SomeCamera" of its control' in note for note in notes)
    assert any("are shares of the model's times" in note for note in notes)
    assert any("DWPreprocessor" in note and "must be the map" in note for note in notes)


def test_invokeais_control_nets_have_the_maps_that_it_made(tmp_path: Path) -> None:
    net = {
        "control_model": {"key": "x", "name": "canny", "base": "sd-1"},
        "control_weight": 0.75, "begin_step_percent": 0, "end_step_percent": 0.8,
        "control_mode": "more_control", "resize_mode": "fill_resize",
        "image": {"image_name": "photo.png"}, "processed_image": {"image_name": "map.png"},
    }  # fmt: skip
    adapter = {"t2i_adapter_model": {"name": "sketch"}, "image": {"image_name": "s.png"}}
    more = {"controlnets": [net], "t2iAdapters": [{**adapter, "weight": 0.5}], "ipAdapters": []}
    found = read(tmp_path, {"invokeai_metadata": json.dumps({**INVOKEAI, **more})})
    assert found.request is not None
    assert told(found.request) == ("canny:map.png:0.75:0..0.8, sketch:s.png:0.5", [])
    assert (found.request.control_mode, found.request.resize) == (ControlMode.CONTROL, Resize.FILL)


def test_a_body_of_a1111s_api_names_its_pictures(tmp_path: Path) -> None:
    unit = {
        "enabled": True, "module": "canny", "model": "control_v11p_sd15_canny [d14c016b]",
        "image": "edges.png", "weight": 0.8, "guidance_end": 0.7, "control_mode": 2,
        "resize_mode": "Resize and Fill", "threshold_a": 50, "threshold_b": 180,
    }  # fmt: skip
    body: dict[str, Any] = {"prompt": "a cat", "alwayson_scripts": {"ControlNet": {"args": [unit]}}}
    [request] = parse_prompts(json.dumps(body), Request(""), "a.jsonl", folder=tmp_path).requests
    [control] = request.controls
    assert (control.model.name, control.weight) == ("control_v11p_sd15_canny", 0.8)
    assert control.image.name == str(tmp_path / "edges.png")
    assert [str(one) for one in request.preprocess] == ["canny:50,180"]
    assert (request.control_mode, request.resize) == (ControlMode.CONTROL, Resize.FILL)
    old = {"input_image": "e.png", "model": "m", "guidance": 0.5}
    body["alwayson_scripts"] = {"controlnet": {"args": [old, {**unit, "enabled": False}]}}
    [request] = parse_prompts(json.dumps(body), Request(""), "a.jsonl").requests
    assert told(request) == ("m:e.png:1:0..0.5", [])
    for script, line in [
        ({"refiner": {"args": []}}, '"refiner" is none that is known'),
        ({"controlnet": {"args": [{"model": "m"}]}}, "ControlNet 0 has no image"),
        ({"controlnet": {"args": [{**unit, "module": "openpose"}]}}, "must be the map"),
    ]:
        with pytest.raises(BadRequest, match=line):
            parse_prompts(json.dumps({**body, "alwayson_scripts": script}), Request(""), "a.jsonl")


def test_none_undoes_the_controls_of_a_record() -> None:
    request, _ = a1111(f'ControlNet 0: "{UNIT}"')
    assert request.controls[0].image.name == UNNAMED
    assert request.with_json({"controls": ["none"]}).controls == ()


def test_ip_adapters_are_read_from_all_of_them(tmp_path: Path) -> None:
    unit = "Module: ip-adapter_clip_sd15, Model: ip-adapter-plus_sd15 [836b5c2e], Weight: 0.6"
    request, notes = a1111(f'ControlNet 0: "{unit}, Guidance Start: 0, Guidance End: 0.8"')
    assert ([str(one) for one in request.ip_adapters], notes) == (
        ["ip-adapter-plus_sd15:?:0.6:0..0.8"],
        [],
    )
    assert (request.controls, request.ip_adapters[0].model.hash) == ((), "836b5c2e")
    with pytest.raises(BadFile, match="--ip-adapter ip-adapter-plus_sd15:IMAGE"):
        resolve_images(request, ImagePaths())
    nodes = graph(denoise=1.0, latent_image=["5", 0], scheduler="normal", model=["50", 0])
    inputs = {"model": ["4", 0], "ipadapter": ["51", 0], "image": ["52", 0], "weight": 0.5}
    inputs |= {"start_at": 0.0, "end_at": 0.9}
    nodes["50"] = {"class_type": "IPAdapterAdvanced", "inputs": inputs}
    loader = {"ipadapter_file": "ip-adapter_sd15.safetensors"}
    nodes["51"] = {"class_type": "IPAdapterModelLoader", "inputs": loader}
    nodes["52"] = {"class_type": "LoadImage", "inputs": {"image": "face.png"}}
    request, notes = comfyui(tmp_path, nodes)
    assert [str(one) for one in request.ip_adapters] == ["ip-adapter_sd15:face.png:0.5:0..0.9"]
    assert not notes and request.model
    adapter = {"ip_adapter_model": {"name": "plus"}, "image": {"image_name": "f.png"}}
    table = {**INVOKEAI, "ipAdapters": [{**adapter, "weight": 0.4, "end_step_percent": 0.5}]}
    found = read(tmp_path, {"invokeai_metadata": json.dumps(table)})
    assert found.request and [str(one) for one in found.request.ip_adapters] == [
        "plus:f.png:0.4:0..0.5"
    ]
