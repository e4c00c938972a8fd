"""LoRAs of diffusion transformers in every naming; fused layers are cut as diffusers cuts them."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers.loaders import lora_conversion_utils as theirs
from torch import Tensor, nn

from tests.support.adapters import Pairs, State, kohya, pairs, peft, write
from tests.support.tiny_transformers import flux_schnell
from tests.support.transformers import original
from tests.weights.adapters.test_lora import put_on, states
from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.configs import Flux2Config, FluxConfig, SD3Config, ZImageConfig
from txt2img.models.flux import FluxTransformer
from txt2img.models.flux2 import Flux2Transformer
from txt2img.models.sd3 import SD3Transformer
from txt2img.models.z_image import ZImageTransformer
from txt2img.system.device.device import Device
from txt2img.weights.adapters import key_names
from txt2img.weights.adapters.lora import Adapter, merge, open_adapter
from txt2img.weights.adapters.lycoris import merged_weight
from txt2img.weights.formats import tensors
from txt2img.weights.layouts.transformer_key_maps import layers_of
from txt2img.weights.load import load

SMALL = {"cross_dim": 24, "heads": 2, "head_dim": 16}
TINY: dict[str, Callable[[], nn.Module]] = {
    "flux": lambda: FluxTransformer(
        FluxConfig(double_blocks=2, single_blocks=2, pooled=24, axes=(4, 4, 8), **SMALL)
    ),
    "sd3": lambda: SD3Transformer(
        SD3Config(layers=2, pooled=24, positions=8, dual_layers=(0,), **SMALL)
    ),
    "z-image": lambda: ZImageTransformer(
        ZImageConfig(layers=2, refiner_layers=1, axes=(8, 8, 8), **SMALL | {"head_dim": 24})
    ),
    "flux2": lambda: Flux2Transformer(
        Flux2Config(double_blocks=2, single_blocks=2, axes=(4, 4, 4, 4), **SMALL)
    ),
}
LAYERS = (
    r"(to_(q|k|v|out\.0|add_out|qkv_mlp_proj)|add_\w_proj|proj_mlp|net\.(0\.proj|2)|w\d|linear\w*)$"
)


def network(kind: str) -> nn.Module:
    torch.manual_seed(3)
    return TINY[kind]().requires_grad_(False)


def opened(file: Path, model: nn.Module) -> Adapter:
    return open_adapter(file.stem, file, model, (), "FLUX.1")


def merged(model: nn.Module, file: Path) -> State:
    """The model's weights with a file merged at full strength."""
    layers, files = key_names.layers(model, ()), tensors.Files()
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    for piece in opened(file, model).pieces:
        for kind, value in merge(layers[piece.layer], [(piece, 1.0)], files).items():
            changed[f"{piece.layer.removeprefix('transformer.')}.{kind}"] = value
    return changed


def close(got: State, wanted: State) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=name)


def some(model: nn.Module) -> Pairs:
    torch.manual_seed(4)
    return pairs(model, LAYERS)


@pytest.mark.parametrize("kind", TINY)
def test_all_namings_of_our_layers_mean_the_same(kind: str, tmp_path: Path) -> None:
    model = network(kind)
    found = some(model)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for name, (down, up) in found.items():
        wanted[f"{name}.weight"] += up @ down
    spelled = {prefix or "bare": peft(found, prefix) for prefix in ("transformer.", "")}
    spelled["ai-toolkit"] = peft(found, "diffusion_model.")
    spelled["wrapped"] = peft(found, "base_model.model.")
    spelled["kohya"] = kohya(found, alpha=None)
    spelled["onetrainer"] = kohya(found, "lora_transformer_", alpha=None)
    spelled["mixed"] = {
        name.replace("_", ".").replace("lora.A", "lora_A").replace("lora.B", "lora_B"): value
        for name, value in peft(found, "").items()
    }
    for name, state in spelled.items():
        file = write(tmp_path / f"{name}.safetensors", state)
        note = opened(file, model).report()
        assert note == f"LoRA {file.stem}: applied {len(found)} of {len(found)}"
        close(merged(model, file), wanted)


def original_layers(model: nn.Module) -> State:
    """The weights by layer of the original layout."""
    whole = original(dict(model.state_dict()), layers_of(model.config))
    return {
        n.removesuffix(".weight"): v
        for n, v in whole.items()
        if v.ndim == 2 and n.endswith("weight")
    }


def of_lora(rows: int, columns: int) -> tuple[State, Tensor]:
    down, up = torch.randn(4, columns), torch.randn(rows, 4) / 4
    delta = up @ down / 2
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}, delta


def of_loha(rows: int, columns: int) -> tuple[State, Tensor]:
    a, b = torch.randn(rows, 2), torch.randn(2, columns)
    c, d = torch.randn(rows, 2), torch.randn(2, columns)
    named = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    return named, (a @ b) * (c @ d)


def of_lokr(rows: int, columns: int) -> tuple[State, Tensor]:
    small, large = torch.randn(4, 4), torch.randn(rows // 4, columns // 4)
    return {"lokr_w1": small, "lokr_w2": large}, torch.kron(small, large)


def of_diff(rows: int, columns: int) -> tuple[State, Tensor]:
    delta = torch.randn(rows, columns)
    return {"diff": delta}, delta


@pytest.mark.parametrize("method", [of_lora, of_loha, of_lokr, of_diff])
@pytest.mark.parametrize("kind", TINY)
def test_layers_of_the_original_layout_are_cut_and_turned(
    kind: str, method: Callable[[int, int], tuple[State, Tensor]], tmp_path: Path
) -> None:
    model = network(kind)
    torch.manual_seed(5)
    state: State = {}
    changed: State = {}
    weights = original_layers(model)
    for layer, weight in weights.items():
        named, delta = method(*weight.shape)
        state |= {f"lora_unet_{layer.replace('.', '_')}.{n}": value for n, value in named.items()}
        changed[f"{layer}.weight"] = weight + delta
    file = write(tmp_path / "a.safetensors", state)
    assert opened(file, model).report() == f"LoRA a: applied {len(weights)} of {len(weights)}"
    got = original(merged(model, file), layers_of(model.config))
    close({name: got[name] for name in changed}, changed)


@cache
def published(kind: str) -> nn.Module:
    """A network of full width and fewer blocks, on the meta device."""
    with torch.device("meta"):
        if kind == "flux":
            return FluxTransformer(FluxConfig(double_blocks=4, single_blocks=16))
        if kind == "flux2":
            return Flux2Transformer(Flux2Config(double_blocks=4, single_blocks=16))
        return ZImageTransformer(ZImageConfig(layers=5))


def kohya_flux(model: nn.Module) -> State:
    """What kohya's trainer writes for FLUX.1: some blocks, and what is outside them."""
    made: State = {}
    for name, value in sorted(original(dict(model.state_dict()), layers_of(model.config)).items()):
        layer = name.removesuffix(".weight")
        if value.ndim != 2 or not any(part in f"{layer}." for part in SOME_BLOCKS):
            continue
        flat = f"lora_unet_{layer.replace('.', '_')}"
        made[f"{flat}.lora_down.weight"] = torch.randn(2, value.shape[1])
        made[f"{flat}.lora_up.weight"] = torch.randn(value.shape[0], 2)
        if "final_layer" not in layer:  # whose alpha diffusers does not read
            made[f"{flat}.alpha"] = torch.tensor(0.5)
    return made


SOME_BLOCKS = ("double_blocks.3.", "single_blocks.15.", "img_in.", "txt_in.", "time_in.", "final_")


def xlabs(model: nn.Module) -> State:
    """What XLabs' trainer writes."""
    width, made = model.config.width, {}
    for part, rows, columns in (
        ("double_blocks.3.processor.qkv_lora1", 3 * width, width),
        ("double_blocks.3.processor.qkv_lora2", 3 * width, width),
        ("double_blocks.3.processor.proj_lora1", width, width),
        ("double_blocks.3.processor.proj_lora2", width, width),
        ("single_blocks.7.processor.qkv_lora", 3 * width, width),
        ("single_blocks.7.processor.proj_lora", width, 5 * width),
    ):
        made[f"{part}.down.weight"] = torch.randn(2, columns)
        made[f"{part}.up.weight"] = torch.randn(rows, 2)
    return made


def ai_toolkit(model: nn.Module) -> State:
    """What ai-toolkit writes for FLUX.2: names of the original layout."""
    named = kohya_flux(model)
    whole = original(dict(model.state_dict()), layers_of(model.config))
    flat = {name.removesuffix(".weight").replace(".", "_"): name for name in whole}
    made: State = {}
    for name, value in named.items():
        layer, _, kind = name.removeprefix("lora_unet_").partition(".")
        if kind != "alpha":
            letter = "A" if "down" in kind else "B"
            made[f"diffusion_model.{flat[layer][:-7]}.lora_{letter}.weight"] = value
    return made


def z_image(model: nn.Module) -> State:
    """What trainers on diffusers' Z-Image write with kohya's marks, in some blocks."""
    found = pairs_of_meta(model, ("layers.4.attention", "context_refiner.0.feed"))
    return kohya(found, alpha=0.5)


def z_image_anime(model: nn.Module) -> State:
    """A trainer's dots everywhere, with q, k and v as one besides."""
    made: State = {}
    for name, (down, up) in pairs_of_meta(model, ("layers.4.attention.to_",)).items():
        dotted = name.replace("to_q", "to.q").replace("to_k", "to.k").replace("to_v", "to.v")
        made |= {f"{dotted}.lora.down.weight": down, f"{dotted}.lora.up.weight": up}
    fused = "layers.4.attention.qkv.lora"
    made |= {f"{fused}.down.weight": torch.ones(2, 3840)}
    return made | {f"{fused}.up.weight": torch.ones(3 * 3840, 2)}


def pairs_of_meta(model: nn.Module, parts: tuple[str, ...]) -> Pairs:
    return {
        name.removesuffix(".weight"): (torch.randn(2, v.shape[1]), torch.randn(v.shape[0], 2))
        for name, v in model.state_dict().items()
        if v.ndim == 2 and name.startswith(parts)
    }


CASES = {
    "kohya, FLUX.1": ("flux", kohya_flux, theirs._convert_kohya_flux_lora_to_diffusers),
    "XLabs, FLUX.1": ("flux", xlabs, theirs._convert_xlabs_flux_lora_to_diffusers),
    "kohya, Z-Image": (
        "z-image",
        z_image,
        theirs._convert_non_diffusers_z_image_lora_to_diffusers,
    ),
    "dots, Z-Image": (
        "z-image",
        z_image_anime,
        theirs._convert_non_diffusers_z_image_lora_to_diffusers,
    ),
    "ai-toolkit, FLUX.2": (
        "flux2",
        ai_toolkit,
        theirs._convert_non_diffusers_flux2_lora_to_diffusers,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_change_the_layers_that_diffusers_says(case: str, tmp_path: Path) -> None:
    kind, make, convert = CASES[case]
    torch.manual_seed(6)
    state = make(published(kind))
    file = write(tmp_path / "a.safetensors", state)
    adapter = opened(file, published(kind))
    assert not adapter.unknown
    got = {}
    for piece in adapter.pieces:
        parts = piece.read(tensors.Files())
        vector = torch.randn(parts["down"].shape[1], 1, generator=torch.Generator().manual_seed(7))
        scale = 1.0 if piece.alpha is None else piece.alpha / len(parts["down"])
        got[piece.layer.removeprefix("transformer.")] = (
            scale * parts["up"] @ (parts["down"] @ vector)
        )
    wanted = {}
    converted = {n.removeprefix("transformer."): v for n, v in convert(dict(state)).items()}
    for name, down in converted.items():
        if name.endswith(".lora_A.weight"):
            vector = torch.randn(down.shape[1], 1, generator=torch.Generator().manual_seed(7))
            layer = name.removesuffix(".lora_A.weight")
            wanted[layer] = converted[f"{layer}.lora_B.weight"] @ (down @ vector)
    if case.startswith("ai-toolkit"):  # whose final scale and shift diffusers does not exchange
        rows = wanted["norm_out.linear"]
        wanted["norm_out.linear"] = rows.roll(len(rows) // 2, 0)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_a_fused_layer_of_another_size_is_told(tmp_path: Path) -> None:
    pair = torch.ones(2, 32), torch.ones(99, 2)
    file = write(tmp_path / "a.safetensors", kohya({"double_blocks.0.img_attn.qkv": pair}))
    message = r"a\.safetensors: .*img_attn_qkv.* does not fit layers of 96 rows"
    with pytest.raises(MissingWeights, match=message):
        opened(file, network("flux"))


def test_a_rotation_of_a_fused_layer_is_refused(tmp_path: Path) -> None:
    blocks = {"lora_unet_double_blocks_0_img_attn_qkv.oft_blocks": torch.zeros(4, 24, 24)}
    file = write(tmp_path / "a.safetensors", blocks)
    with pytest.raises(UnknownLayout, match="several layers as one"):
        opened(file, network("flux"))


def test_a_file_for_another_architecture_names_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", kohya(some(network("z-image"))))
    with pytest.raises(UnknownLayout, match="it is made for Z-Image, not for FLUX"):
        opened(file, network("flux"))


def test_a_magnitude_is_cut_with_its_rows(tmp_path: Path) -> None:
    model = network("z-image")
    torch.manual_seed(8)
    down, up, magnitude = torch.randn(2, 48), torch.randn(144, 2), torch.rand(144, 1) + 1
    key = "lora_unet_layers_1_attention_qkv"
    state = kohya({"layers.1.attention.qkv": (down, up)}, alpha=None)
    file = write(tmp_path / "a.safetensors", state | {f"{key}.dora_scale": magnitude})
    weights = [model.state_dict()[f"layers.1.attention.to_{n}.weight"] for n in "qkv"]
    parts = {"down": down, "up": up, "dora": magnitude}
    wanted = merged_weight(torch.cat(weights), parts, None, 1.0).chunk(3)
    got = merged(model, file)
    for name, value in zip("qkv", wanted, strict=True):
        torch.testing.assert_close(got[f"layers.1.attention.to_{name}.weight"], value)


def test_a_loaded_model_has_diffusers_fused_weights_and_then_its_own(tmp_path: Path) -> None:
    files = flux_schnell()
    model = load(str(files.folder), Device(torch.device("cpu"), torch.float32))
    other = deepcopy(files.pipeline.transformer)
    found, before = some(other), states(model)
    words = kohya({"text_model.encoder.layers.0.mlp.fc1": CLIP_PAIR}, "lora_te1_", alpha=None)
    file = write(tmp_path / "a.safetensors", peft(found, "transformer."))
    both = write(tmp_path / "b.safetensors", kohya(found, alpha=None) | words)
    other.load_lora_adapter(file, prefix="transformer")
    other.fuse_lora(0.5)
    other.unload_lora()
    for one, count in ((file, len(found)), (both, len(found) + 1)):
        notes = put_on(model, one, unet=0.5, text=2.0)
        assert notes[-1] == f"LoRA {one.stem}: applied {count} of {count}"
        close(dict(model.network.state_dict()), other.state_dict())
    changed = {
        name for name, value in states(model).items() if not torch.equal(value, before[name])
    }
    assert len(changed) == len(found) + 1
    put_on(model)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


CLIP_PAIR = torch.ones(1, 16), torch.ones(24, 1)
