"""Other programs' pictures that began from a picture: what it is called, and how it was used."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.images.metadata.test_readers import GRAPH, INVOKEAI, read
from txt2img.images.metadata.a1111 import describe, parse, to_request
from txt2img.images.metadata.mflux import strength
from txt2img.request import Request
from txt2img.request.compat import rules, steps_of
from txt2img.request.input_image import UNNAMED, ImageRef, InpaintFill, Resize

LINE = "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 4, Size: 64x64, Model hash: 0123456789"
NOTHING_NAMED = ImageRef(UNNAMED)


def began(request: Request | None) -> tuple[str, str, float | None]:
    """The names of the picture and the mask, and the strength."""
    assert request is not None
    names = [ref.name if ref else "" for ref in (request.image, request.mask)]
    return names[0], names[1], request.strength


def a1111(more: str) -> tuple[Request, list[str]]:
    return to_request(parse(f"a cat\n{LINE}, {more}, Version: v1.10.1"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("Denoising strength: 0.6", (UNNAMED, "", 0.6)),
        ("Denoising strength: 0.6, Init image hash: 9f17", ("9f17.png", "", 0.6)),
        ("Denoising strength: 0.6, Mask blur: 8", (UNNAMED, UNNAMED, 0.6)),
        ("Denoising strength: 1.0", ("", "", None)),
        ("Denoising strength: 0.6, Hires upscale: 2, Hires upscaler: Latent", ("", "", None)),
        ("Denoising strength: 0.6, First pass size: 0x0", ("", "", None)),
        ("Denoising strength: 0.6, Operations: txt2img", ("", "", None)),
        ("Denoising strength: 0.6, Operations: img2img", (UNNAMED, "", 0.6)),
    ],
)
def test_a_strength_of_a1111s_is_of_a_picture_or_of_a_second_pass(
    more: str, expected: tuple[str, str, float | None]
) -> None:
    assert began(a1111(more)[0]) == expected


def test_a1111s_inpainting_is_carried_over() -> None:
    request, notes = a1111(
        "Denoising strength: 0.75, Mask blur: 8, Mask mode: Inpaint not masked, "
        "Inpaint area: Only masked, Masked area padding: 48, Masked content: latent noise"
    )
    assert notes == []
    assert (request.mask_blur, request.mask_invert, request.only_masked) == (8.0, True, 48)
    assert request.inpaint_fill is InpaintFill.NOISE
    without = a1111("Denoising strength: 0.75, Masked content: fill")[0]
    assert (without.mask_blur, without.only_masked) == (0.0, None)
    assert without.inpaint_fill is InpaintFill.FILL


def test_our_own_text_alone_says_all_but_the_picture() -> None:
    wanted = Request(
        "a cat", width=64, height=64, steps=4, seed=1, image=ImageRef("a.png", "0" * 64),
        strength=0.5, resize=Resize.STRETCH, mask=ImageRef("m.png", "1" * 64), mask_blur=6.0,
        mask_invert=True, inpaint_fill=InpaintFill.ZERO, only_masked=16,
    )  # fmt: skip
    found, notes = to_request(parse(str(describe(wanted, "m", "0123456789", "0.1.0"))))
    assert notes == []
    for name in ("strength", "resize", "mask_blur", "mask_invert", "inpaint_fill", "only_masked"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.image == found.mask == NOTHING_NAMED


def graph(**inputs: object) -> dict[str, Any]:
    """A graph of ComfyUI that begins from a picture, its sampler with these inputs."""
    nodes: dict[str, Any] = json.loads(json.dumps(GRAPH))
    nodes["3"]["inputs"] |= {"latent_image": ["20", 0], "denoise": 0.6, **inputs}
    nodes["20"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["21", 0], "vae": ["4", 2]}}
    nodes["21"] = {"class_type": "LoadImage", "inputs": {"image": "clipspace/a b.png [input]"}}
    return nodes


def comfyui(tmp_path: Path, nodes: dict[str, Any]) -> tuple[Request, tuple[str, ...]]:
    found = read(tmp_path, {"prompt": json.dumps(nodes)})
    assert found.request is not None
    # The file, of 8x8 pixels, is none that could be drawn.
    return found.request, tuple(note for note in found.notes if "no size" not in note)


def test_a_picture_of_comfyui_is_followed_to_its_loader(tmp_path: Path) -> None:
    request, notes = comfyui(tmp_path, graph())
    assert began(request) == ("a b.png", "", 0.6)
    assert not notes
    nodes = graph(denoise=1.0)
    scale = {"width": 128, "height": 64, "crop": "center", "image": ["21", 0]}
    nodes["22"] = {"class_type": "ImageScale", "inputs": scale}
    nodes["23"] = {"class_type": "ImageBlur", "inputs": {"image": ["22", 0]}}
    nodes["20"]["inputs"]["pixels"] = ["23", 0]
    request, notes = comfyui(tmp_path, nodes)
    assert began(request) == ("a b.png", "", 1.0)
    assert (request.width, request.height, request.resize) == (128, 64, None)
    assert notes == ('the node "ImageBlur" of its picture is not carried over',)


def test_masks_of_comfyui_are_followed_too(tmp_path: Path) -> None:
    nodes = graph()
    nodes["30"] = {"class_type": "SetLatentNoiseMask", "inputs": {"mask": ["31", 0]}}
    nodes["30"]["inputs"]["samples"] = ["20", 0]
    nodes["31"] = {"class_type": "InvertMask", "inputs": {"mask": ["32", 0]}}
    loader = {"image": "m.png", "channel": "red"}
    nodes["32"] = {"class_type": "LoadImageMask", "inputs": loader}
    nodes["3"]["inputs"]["latent_image"] = ["30", 0]
    request, notes = comfyui(tmp_path, nodes)
    assert began(request) == ("a b.png", "m.png", 0.6) and request.mask_invert
    assert not notes
    own = graph()  # the mask is where the picture itself is transparent
    own["20"] = {"class_type": "VAEEncodeForInpaint", "inputs": {"pixels": ["21", 0]}}
    own["20"]["inputs"] |= {"mask": ["21", 1], "grow_mask_by": 6}
    request, notes = comfyui(tmp_path, own)
    assert began(request) == ("a b.png", "", 0.6)
    assert notes == ("grow_mask_by 6 is not carried over",)


@pytest.mark.parametrize("steps", [3, 20, 49, 50, 97])
def test_comfyuis_later_steps_of_a_picture_are_as_many(tmp_path: Path, steps: int) -> None:
    nodes = graph(steps=steps, start_at_step=steps // 3)
    nodes["3"]["class_type"] = "KSamplerAdvanced"
    request, _ = comfyui(tmp_path, nodes)
    counted = steps_of(request, rules(request))
    assert (counted.total, counted.drawn) == (steps, steps - steps // 3)


def test_a_graph_that_begins_from_something_else_tells_it(tmp_path: Path) -> None:
    nodes = graph()
    nodes["21"] = {"class_type": "SomeCamera", "inputs": {}}
    request, notes = comfyui(tmp_path, nodes)
    assert began(request) == ("", "", None)
    for what in ('"SomeCamera" of its picture', "denoise 0.6", "it began with a picture"):
        assert any(what in note for note in notes)


def test_invokeai_names_its_picture(tmp_path: Path) -> None:
    more = {"generation_mode": "img2img", "strength": 0.7, "init_image": "c0ffee.png"}
    found = read(tmp_path, {"invokeai_metadata": json.dumps({**INVOKEAI, **more})})
    assert began(found.request) == ("c0ffee.png", "", 0.7)
    more = {"generation_mode": "sdxl_inpaint", "strength": 0.7}
    found = read(tmp_path, {"invokeai_metadata": json.dumps({**INVOKEAI, **more})})
    assert began(found.request) == (UNNAMED, UNNAMED, 0.7)


def mflux(tmp_path: Path, **more: object) -> tuple[Request, tuple[str, ...]]:
    table = {
        "mflux_version": "0.9.0",
        "model": "black-forest-labs/FLUX.1-dev",
        "seed": 3,
        "steps": 4,
        "guidance": 3.5,
        "height": 64,
        "width": 128,
        "quantize": 8,
        "prompt": "a fox",
        "lora_paths": ["/l/ink.safetensors"],
        "lora_scales": [0.8],
        **more,
    }
    found = read(tmp_path, {"UserComment": json.dumps(table)})
    assert found.request is not None
    return found.request, found.notes


def test_mfluxs_strength_is_turned_round(tmp_path: Path) -> None:
    request, notes = mflux(tmp_path, image_path="/home/x/a.png", image_strength=0.4)
    assert began(request) == ("a.png", "", 0.75)  # int(4 * 0.4) of four steps is left out
    assert (request.prompt, request.model, request.guidance) == ("a fox", "FLUX.1-dev", 3.5)
    assert [(lora.name, lora.unet) for lora in request.loras] == [("ink", 0.8)]
    assert notes[0] == "quantize 8 is not carried over" and len(notes) == 2
    assert began(mflux(tmp_path, image_path="a.png", image_strength=0.0)[0]) == ("", "", None)


@pytest.mark.parametrize("kept", [0.01, 0.25, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 7, 25, 49])
def test_as_many_steps_are_drawn_as_mflux_draws(steps: int, kept: float) -> None:
    share = strength(kept, steps)
    assert int(steps * share) == steps - max(1, int(steps * kept))


def test_swarmui_leaves_the_picture_out(tmp_path: Path) -> None:
    table = {"prompt": "a fox", "seed": 3, "steps": 4, "initimagecreativity": 0.6}
    found = read(tmp_path, {"parameters": json.dumps({"sui_image_params": table})})
    assert began(found.request) == (UNNAMED, "", 0.6)
