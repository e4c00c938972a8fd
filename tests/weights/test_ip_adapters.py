"""Files of IP-Adapters and image encoders: found, checked, refused in a line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import ip_adapters, tiny, tiny_xl
from txt2img.errors import BadFile, BadRequest, ModelNotFound, Txt2imgError, UnknownLayout
from txt2img.models.clip_vision import CLIPVision
from txt2img.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import remove_adapters, resolve_adapters
from txt2img.weights.file_kind import kind_of
from txt2img.weights.file_summary import summarise
from txt2img.weights.formats import safetensors_file
from txt2img.weights.ip_adapters import load_networks
from txt2img.weights.layouts.clip_vision import clip_vision_in
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def shared_model() -> Model:
    return load(str(tiny.sd1().folder), CPU)


@pytest.fixture
def model(shared_model: Model) -> Model:
    remove_adapters(shared_model)
    return shared_model


@pytest.fixture
def plus(folder: Path) -> Path:
    """An IP-Adapter Plus, with a picture and the encoder beside it."""
    (folder / "image_encoder").symlink_to(ip_adapters.encoder_folder())
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    return ip_adapters.file_of("plus", tiny.sd1().unet, folder, "plus")


def resolved(model: Model, text: str, **more: object) -> Request:
    return resolve_adapters(model, Request("x").with_json({"ip_adapters": text, **more}))


def single_file(path: Path, open_clip: bool = False) -> Path:
    """The encoder as one file: transformers' names, or OpenCLIP's beside a text encoder."""
    state = dict(ip_adapters.encoder().state_dict())
    save_file(to_open_clip(state) if open_clip else state, path)
    return path


def to_open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
        "visual_projection.weight": "proj",
    }
    parts = {
        "vision_model.pre_layrnorm": "ln_pre",
        "vision_model.post_layernorm": "ln_post",
        "vision_model.encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    out, fused = {}, {}
    for name, value in state.items():
        new = names.get(name, name)
        for ours, theirs in parts.items():
            new = new.replace(ours, theirs)
        for letter in "qkv":
            if f"self_attn.{letter}_proj." in new:
                key = new.replace(f"self_attn.{letter}_proj.", "attn.in_proj_")
                fused.setdefault(key, {})[letter] = value
                break
        else:
            out[f"visual.{new}"] = value.T if new == "proj" else value
    out |= {f"visual.{k}": torch.cat([v[one] for one in "qkv"]) for k, v in fused.items()}
    more = {"token_embedding.weight": torch.zeros(9, 8), "logit_scale": torch.zeros(1)}
    return {name: value.contiguous() for name, value in (out | more).items()}


@pytest.mark.parametrize("open_clip", [False, True])
def test_every_layout_of_the_encoder_gives_the_same(
    model: Model, plus: Path, tmp_path: Path, open_clip: bool
) -> None:
    """ComfyUI's and A1111's single files, and OpenCLIP's whole CLIP."""
    from dataclasses import replace

    path = single_file(tmp_path / "clip_vision.safetensors", open_clip)
    model.adapters.paths = replace(AdapterPaths(), ip_encoders=(str(path),))
    request = resolved(model, f"{plus}:red.png")
    assert request.ip_adapters[0].encoder is not None
    assert request.ip_adapters[0].encoder.name == "clip_vision"
    _, vision = load_networks(model, model.adapters.ip_adapters["plus"])
    pixels = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        wanted = ip_adapters.encoder()(pixels, output_hidden_states=True)
        assert torch.allclose(vision(pixels), wanted.image_embeds, atol=1e-5)
        assert torch.allclose(vision(pixels, states=True), wanted.hidden_states[-2], atol=1e-4)


def test_the_encoder_is_found_beside_the_adapter_and_in_folders_of_models(
    model: Model, plus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolved(model, f"{plus}:red.png").ip_adapters[0]
    assert first.encoder is not None and len(first.encoder.hash) == len(first.model.hash) == 10
    (plus.parent / "image_encoder").unlink()
    remove_adapters(model)
    with pytest.raises(ModelNotFound, match=r"states 64 wide .* give its file with --ip-encoder"):
        resolved(model, f"{plus}:red.png")
    folder = tmp_path / "models" / "clip_vision"
    folder.mkdir(parents=True)
    single_file(folder / "any.safetensors")
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder.parent))
    remove_adapters(model)
    again = resolved(model, f"{plus}:red.png").ip_adapters[0]
    assert again.encoder is not None and again.encoder.name == "any"


def test_an_encoder_of_another_width_is_told(model: Model, plus: Path, tmp_path: Path) -> None:
    """A base adapter reads the embedding, which is narrower than the states."""
    from dataclasses import replace

    state = load_file(plus)
    state["image_proj.proj_in.weight"] = torch.zeros(128, 48)
    save_file(state, tmp_path / "other.safetensors")
    model.adapters.paths = replace(
        AdapterPaths(), ip_encoders=(str(plus.parent / "image_encoder"),)
    )
    with pytest.raises(
        UnknownLayout, match=r"reads states 48 wide .*, which \"image_encoder\" does not"
    ):
        resolved(model, f"{tmp_path}/other.safetensors:red.png")


def test_another_hash_than_recorded_is_warned_of(model: Model, plus: Path) -> None:
    use = {"model": {"name": str(plus), "hash": "0" * 10}, "image": "red.png"}
    use |= {"encoder": {"name": "old", "hash": "1" * 10}}
    resolve_adapters(model, Request("x").with_json({"ip_adapters": [use]}))
    image, adapter = model.adapters.warnings
    assert image.startswith("the picture's image encoder ") and "1111111111" in image
    assert adapter.startswith("the picture's IP-Adapter plus has the hash 0000000000")


def face_id(plus: Path) -> dict[str, torch.Tensor]:
    state = {n: v for n, v in load_file(plus).items() if n.startswith("ip_adapter.")}
    state |= {
        "image_proj.proj.0.weight": torch.zeros(64, 512),
        "image_proj.norm.weight": torch.zeros(32),
    }
    return state


def test_wrong_files_are_told_in_a_line(model: Model, plus: Path, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, torch.Tensor], type[Txt2imgError], str]] = [
        (face_id(plus), UnknownLayout, "is an IP-Adapter FaceID.* use IP-Adapter Plus Face"),
        ({"x": torch.zeros(2)}, UnknownLayout, 'is no IP-Adapter for a U-Net: it contains "x"'),
        (
            {n: v for n, v in load_file(plus).items() if "latents" not in n},
            Txt2imgError,
            "is no whole IP-Adapter: image_proj.latents is missing",
        ),
        (
            ip_adapters.state_of("base", tiny_xl.base().unet),
            UnknownLayout,
            "is made for another U-Net; the model is latent diffusion",
        ),
    ]
    for number, (state, error, words) in enumerate(cases):
        path = tmp_path / f"wrong{number}.safetensors"
        save_file({n: v.contiguous() for n, v in state.items()}, path)
        with pytest.raises(error, match=words):
            resolved(model, f"{path}:red.png")
    pickle = tmp_path / "ip.bin"
    pickle.write_bytes(b"\x80\x02")
    with pytest.raises(BadFile, match="pickle"):
        resolved(model, f"{pickle}:red.png")
    with pytest.raises(ModelNotFound, match=r"--ip-adapter: no file \"nothing\""):
        resolved(model, "nothing:red.png")
    with pytest.raises(BadRequest, match="2 of --ip-mask for 1 of --ip-adapter"):
        resolved(model, f"{plus}:red.png", ip_masks=["red.png", "red.png"])


def test_files_are_known_and_described(plus: Path, tmp_path: Path) -> None:
    vision = single_file(tmp_path / "v.safetensors")
    save_file(face_id(plus), tmp_path / "face.safetensors")
    assert kind_of(plus) == "IP-Adapter" and kind_of(vision) == "image encoder"
    said = summarise(plus)
    assert said is not None and said.details["method"] == "plus, 5 tokens a picture"
    assert said.details["reads"] == "states 64 wide (of an unusual CLIP)"
    said = summarise(tmp_path / "face.safetensors")
    assert said is not None and "not supported" in str(said.details["method"])
    config, part = clip_vision_in(safetensors_file.header(vision).tensors, "v")
    assert set(part.tensors) == {
        name.removeprefix("model.") for name in CLIPVision(config).state_dict()
    }


def test_offloaded_and_narrow_weights_give_the_same_tokens(plus: Path) -> None:
    """With --low-memory the encoder's weights are read for each use."""
    from txt2img.pipeline.image_prompts import _tokens

    low = Device(torch.device("cpu"), torch.float32, low=True)
    got = []
    for device in (CPU, low):
        model = load(str(tiny.sd1().folder), device)
        use = resolved(model, f"{plus}:red.png").ip_adapters[0]
        with torch.inference_mode():
            got.append(_tokens(model, use, use.images[0]))
    assert torch.allclose(*got, atol=1e-5)


def test_networks_stay_in_memory_for_the_next_command(plus: Path) -> None:
    """A worker forgets adapters after each command, but does not read the files again."""
    model = load(str(tiny.sd1().folder), CPU)
    loaded = []
    for _ in range(2):
        resolved(model, f"{plus}:red.png")
        loaded.append(load_networks(model, model.adapters.ip_adapters["plus"]))
        remove_adapters(model)
    assert loaded[0][0] is loaded[1][0] and loaded[0][1] is loaded[1][1]
    plus.touch()
    resolved(model, f"{plus}:red.png")
    again = load_networks(model, model.adapters.ip_adapters["plus"])
    assert again[0] is not loaded[0][0] and again[1] is loaded[0][1]
