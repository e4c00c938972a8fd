"""LoRA files of all namings change weights as in diffusers, and are removed without a trace."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tests.support import adapters, tiny
from tests.support.adapters import ATTENTION, LCM, TEXT, kohya, pairs, peft, write
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadFile, MissingWeights, ModelNotFound, Txt2imgError, UnknownLayout
from txt2img.request.adapters import Lora
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.weights.adapters import key_names
from txt2img.weights.adapters.file_layout import short_hash
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.model import Model

CPU = torch.device("cpu")
State = dict[str, Tensor]
IDS = torch.tensor([[49406, 320, 1125, 539, 49407]])


def put_on(model: Model, *files: Path, **weights: float) -> list[str]:
    """Apply files, all at the same strengths; returns the notes."""
    model.adapters.paths = AdapterPaths({path.stem: path for path in files})
    loras = tuple(Lora(path.stem, **weights) for path in files)
    apply_adapters(model, resolve_adapters(model, Request("", loras=loras)))
    return model.adapters.notes


def in_dtype(model: Model, dtype: torch.dtype) -> Model:
    """The same with its network in another precision, a copy."""
    return replace(model, network=deepcopy(model.network).to(dtype))


def states(model: Model) -> State:
    """Copies of all weights of the network and of the text encoder."""
    both = model.network.state_dict() | model.text.state_dict()
    return {name: value.clone() for name, value in both.items()}


def outputs(model: Model) -> tuple[Tensor, Tensor]:
    """What the network and the text encoder give for fixed inputs."""
    torch.manual_seed(5)
    x, tokens, time = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32), torch.tensor([500.0])
    with torch.no_grad():
        return model.network(x, time, Cond(tokens)), model.text(IDS)


def of_diffusers(file: Path, scale: float) -> tuple[Tensor, Tensor]:
    """The same of diffusers' networks, with the file fused."""
    whole = tiny.sd1()
    pipe = StableDiffusionPipeline(
        vae=deepcopy(whole.vae),
        text_encoder=CLIPTextModel.from_pretrained(whole.folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(whole.folder / "tokenizer"),
        unet=deepcopy(whole.unet),
        scheduler=DDIMScheduler.from_config(whole.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora(lora_scale=scale)
    torch.manual_seed(5)
    x, tokens, time = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32), torch.tensor([500.0])
    with torch.no_grad():
        return pipe.unet(x, time, tokens).sample, pipe.text_encoder(IDS).last_hidden_state


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    return float((got - wanted).abs().max() / wanted.abs().max())


def unet_pairs(which: str = ATTENTION) -> adapters.Pairs:
    torch.manual_seed(1)
    return pairs(tiny.sd1().unet, which)


def text_pairs() -> adapters.Pairs:
    torch.manual_seed(2)
    return pairs(tiny.sd1().text, TEXT)


def as_kohya() -> State:
    text = {f"text_model.{name}": pair for name, pair in text_pairs().items()}
    return kohya(unet_pairs(LCM)) | kohya(text, "lora_te_")


def as_peft() -> State:
    return peft(unet_pairs(LCM)) | peft(text_pairs(), "text_encoder.text_model.")


@pytest.mark.parametrize("make", [as_kohya, as_peft])
def test_the_networks_equal_diffusers_fused_ones(
    make: Callable[[], State], model: Model, tmp_path: Path
) -> None:
    file = write(tmp_path / "style.safetensors", make())
    plain = outputs(model)
    notes = put_on(model, file, unet=0.7, text=0.7)
    count = len(unet_pairs(LCM)) + len(text_pairs())
    assert notes == [f"LoRA style: applied {count} of {count}"]
    for got, wanted, before in zip(outputs(model), of_diffusers(file, 0.7), plain, strict=True):
        assert off(got, wanted) < 1e-5
        assert off(before, wanted) > 1e-2


def test_all_namings_of_a_file_mean_the_same(model: Model, tmp_path: Path) -> None:
    found = unet_pairs()
    old = {
        re.sub(
            r"\.to_(q|k|v|out)(\.0)?\.lora_([AB])\.weight$",
            lambda m: f".processor.to_{m[1]}_lora.{'down' if m[3] == 'A' else 'up'}.weight",
            name,
        ): value
        for name, value in peft(found).items()
    }
    ldm = {
        "lora_unet_" + flat.removeprefix("model.diffusion_model.").replace(".", "_"): pair
        for flat, pair in tiny.ldm_unet(cast(State, found), 2, 2).items()
    }
    spelled = {
        "bare": peft(found, ""),
        "old": old,
        "original": kohya(cast(adapters.Pairs, ldm), "", alpha=None),
        "wrapped": peft(found, "base_model.model."),
    }
    put_on(model, write(tmp_path / "plain.safetensors", kohya(found, alpha=None)))
    wanted = states(model)
    for name, state in spelled.items():
        notes = put_on(model, write(tmp_path / f"{name}.safetensors", state))
        assert notes[-1] == f"LoRA {name}: applied {len(found)} of {len(found)}"
        assert all(torch.equal(value, wanted[key]) for key, value in states(model).items())


def test_old_text_encoder_names_are_known(model: Model, tmp_path: Path) -> None:
    state = {}
    for name, (down, up) in text_pairs().items():
        old = re.sub(r"(q|k|v|out)_proj", r"to_\1", name) + (
            ".lora_linear_layer" if "mlp" in name else "_lora"
        )
        state |= {
            f"text_encoder.text_model.{old}.{d}.weight": v for d, v in (("down", down), ("up", up))
        }
    put_on(model, write(tmp_path / "old.safetensors", state))
    got = states(model)
    new = peft(text_pairs(), "text_encoder.")
    put_on(model, write(tmp_path / "new.safetensors", new))
    assert all(torch.equal(value, got[name]) for name, value in states(model).items())


def test_an_lcm_lora_applies_wholly(model: Model, tmp_path: Path) -> None:
    found = unet_pairs(LCM)
    kinds = {name.rpartition(".")[2] for name in found}
    assert {"to_q", "proj_in", "conv1", "conv_shortcut", "time_emb_proj", "conv", "proj"} <= kinds
    file = write(tmp_path / "lcm.safetensors", kohya(found, alpha=8.0))
    assert put_on(model, file) == [f"LoRA lcm: applied {len(found)} of {len(found)}"]
    weights = dict(tiny.sd1().unet.named_parameters())
    for name, (down, up) in found.items():
        was = weights[f"{name}.weight"]
        wanted = was + 8 / 4 * (up.flatten(1) @ down.flatten(1)).view_as(was)
        assert off(model.network.get_parameter(f"{name}.weight"), wanted) < 1e-6


def test_a_convolution_may_have_its_kernel_in_the_middle(model: Model, tmp_path: Path) -> None:
    name, weight = "mid_block.resnets.0.conv1", model.network.mid_block.resnets[0].conv1.weight
    down, mid, up = torch.randn(4, 64, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(64, 4, 1, 1)
    flat = f"lora_unet_{name.replace('.', '_')}"
    state = {"down": down, "mid": mid, "up": up}
    file = write(
        tmp_path / "cp.safetensors", {f"{flat}.lora_{k}.weight": v for k, v in state.items()}
    )
    # One convolution after the other is one whose kernel is their product.
    x, conv = torch.randn(1, 64, 5, 5), torch.nn.functional.conv2d
    wanted = conv(x, weight, padding=1) + conv(conv(conv(x, down), mid, padding=1), up)
    put_on(model, file)
    assert off(conv(x, weight, padding=1), wanted) < 1e-5


def test_several_add_up_each_at_its_weights(model: Model, tmp_path: Path) -> None:
    torch.manual_seed(3)
    a, b = (pairs(tiny.sd1().unet, r"conv_in$|time_embedding\.linear_1$") for _ in range(2))
    text = text_pairs()
    files = {
        "a": write(tmp_path / "a.safetensors", peft(a)),
        "b": write(tmp_path / "b.safetensors", peft(b) | peft(text, "text_encoder.")),
    }
    model.adapters.paths = AdapterPaths(files)
    before = states(model)
    loras = (Lora("a", 0.5), Lora("b", -0.25, 2.0))
    apply_adapters(model, resolve_adapters(model, Request("", loras=loras)))
    for name in a:
        change = sum(
            w * (up.flatten(1) @ down.flatten(1))
            for w, (down, up) in ((0.5, a[name]), (-0.25, b[name]))
        )
        wanted = before[f"{name}.weight"] + cast(Tensor, change).view_as(before[f"{name}.weight"])
        assert off(model.network.get_parameter(f"{name}.weight"), wanted) < 1e-6
    layers = key_names.layers(model.network, model.text.encoders)
    for name, (down, up) in text.items():
        weight = layers[f"text.{name}"].get_parameter("weight")
        was = next(value for key, value in before.items() if key.endswith(f"{name}.weight"))
        assert off(weight, was + 2 * up @ down) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_removed_lora_leaves_no_trace(dtype: torch.dtype, model: Model, tmp_path: Path) -> None:
    model = in_dtype(model, dtype)
    before = states(model)
    file = write(tmp_path / "a.safetensors", as_kohya())
    put_on(model, file)
    worn = states(model)
    changed = [name for name in before if not torch.equal(before[name], worn[name])]
    assert len(changed) == len(unet_pairs(LCM)) + len(text_pairs())
    put_on(model, file, unet=0.3)
    put_on(model)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_merging_is_done_in_float32_and_rounded_once(model: Model, tmp_path: Path) -> None:
    model = in_dtype(model, torch.float16)
    name, (down, up) = next(iter(unet_pairs().items()))
    files = [write(tmp_path / f"{n}.safetensors", peft({name: (down, up)})) for n in "ab"]
    weight = model.network.get_parameter(f"{name}.weight")
    wanted = (weight.float() + up @ down + up @ down).half()
    put_on(model, *files)
    assert torch.equal(weight, wanted)


def test_pefts_settings_in_the_metadata_give_alpha(model: Model, tmp_path: Path) -> None:
    found = dict(list(unet_pairs().items())[:2])
    first, second = found
    settings = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {second: 2},
        "unet.use_rslora": True,
    }
    before = states(model)
    meta = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    put_on(model, write(tmp_path / "a.safetensors", peft(found), meta))
    for name, scale in ((first, 8 / 2), (second, 2 / 2)):  # alpha / √4
        down, up = found[name]
        wanted = before[f"{name}.weight"] + scale * up @ down
        assert off(model.network.get_parameter(f"{name}.weight"), wanted) < 1e-6


def test_alpha_may_be_a_whole_number(model: Model, tmp_path: Path) -> None:
    name, (down, up) = next(iter(unet_pairs().items()))
    state = kohya({name: (down, up)})
    state |= {key: torch.tensor(2) for key in state if key.endswith("alpha")}
    was = model.network.get_parameter(f"{name}.weight").clone()
    put_on(model, write(tmp_path / "a.safetensors", state))
    assert off(model.network.get_parameter(f"{name}.weight"), was + 0.5 * up @ down) < 1e-6


def test_tensors_that_match_no_layer_are_named(model: Model, tmp_path: Path) -> None:
    found = dict(list(unet_pairs().items())[:3])
    strange = kohya({f"down_blocks.7.x{n}": (torch.ones(1, 2), torch.ones(2, 1)) for n in range(2)})
    [note] = put_on(model, write(tmp_path / "a.safetensors", kohya(found) | strange))
    assert note.startswith(
        "LoRA a: applied 3 of 5; this model has no place for "
        '"lora_unet_down_blocks_7_x0.alpha", "lora_unet_down_blocks_7_x0.lora_down.weight", '
    )
    assert note.endswith(" and 3 more")


def test_an_sdxl_file_names_its_two_text_encoders(model: Model) -> None:
    known = key_names.key_aliases(model.network, model.text.encoders * 2)
    layer = "encoder.layers.0.self_attn.q_proj"
    for number, home in ((1, "text"), (2, "text_2")):
        flat = f"lora_te{number}_text_model_{layer.replace('.', '_')}"
        assert known[flat] == (key_names.Share(f"{home}.{layer}"),)
    [share] = known[f"text_encoder_2.text_model.{layer}"]
    assert share.layer == f"text_2.{layer}"


def broken(change: Callable[[State], object]) -> State:
    state = kohya(unet_pairs())
    change(state)
    return state


def first(state: State, ending: str) -> str:
    return next(name for name in state if name.endswith(ending))


def nan(state: State) -> None:
    state[first(state, "lora_up.weight")][0, 0] = float("nan")


def wider(state: State) -> None:
    state[first(state, "lora_down.weight")] = torch.ones(4, 99)


def turned(state: State) -> None:
    """A weight of other sides and as many numbers fits no better."""
    stem = first(state, "attn2_to_k.alpha").removesuffix(".alpha")
    state |= {
        f"{stem}.lora_down.weight": torch.ones(4, 8),
        f"{stem}.lora_up.weight": torch.ones(128, 4),
    }


def without_up(state: State) -> None:
    del state[first(state, "lora_up.weight")]


def rankless(state: State) -> None:
    stem = first(state, ".alpha").removesuffix(".alpha")
    state |= {
        f"{stem}.lora_down.weight": torch.ones(0, 32),
        f"{stem}.lora_up.weight": torch.ones(32, 0),
    }


def endless(state: State) -> None:
    state[first(state, ".alpha")] = torch.tensor(float("inf"))


def twice(state: State) -> None:
    state |= peft(dict(list(unet_pairs().items())[:1]))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (nan, MissingWeights, "not finite"),
        (wider, MissingWeights, r"\(4, 99\).* does not fit a layer of shape \(32, 32\)"),
        (turned, MissingWeights, "does not fit a layer"),
        (without_up, MissingWeights, "does not fit a layer"),
        (rankless, MissingWeights, "does not fit a layer"),
        (endless, MissingWeights, "alpha.* is not one number"),
        (twice, MissingWeights, "mean the same layer"),
        (dict.clear, UnknownLayout, "applied 0 of 0"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line_and_leaves_no_trace(
    change: Callable[[State], object],
    kind: type[Txt2imgError],
    message: str,
    model: Model,
    tmp_path: Path,
) -> None:
    good = write(tmp_path / "good.safetensors", as_kohya())
    before = states(model)
    bad = write(tmp_path / "bad.safetensors", broken(change))
    with pytest.raises(kind, match=message) as caught:
        put_on(model, good, bad)
    assert "\n" not in str(caught.value) and "bad.safetensors" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_other_files_are_refused_by_their_kind(model: Model, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors", as_kohya()).read_bytes()
    cases: list[tuple[str, bytes, type[Txt2imgError], str]] = [
        ("cut.safetensors", whole[:-9], BadFile, "truncated"),
        ("a.pt", b"PK\x03\x04" + bytes(99), UnknownLayout, "pickled"),
        ("page.safetensors", b"<!doctype html>", UnknownLayout, "web page"),
    ]
    for name, content, kind, message in cases:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=message):
            put_on(model, tmp_path / name)
    with pytest.raises(UnknownLayout, match=r"applied 0 of .* model than latent"):
        put_on(model, tiny.sd1().folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ModelNotFound, match='no LoRA "nowhere"'):
        resolve_adapters(model, Request("<lora:nowhere:1>"))


def test_weights_that_grow_too_large_are_refused(model: Model, tmp_path: Path) -> None:
    model = in_dtype(model, torch.float16)
    file = write(tmp_path / "a.safetensors", kohya(unet_pairs()))
    with pytest.raises(MissingWeights, match=r"too large for torch\.float16"):
        put_on(model, file, unet=1e7)


def test_a_loras_hash_is_a1111s(tmp_path: Path) -> None:
    from hashlib import sha256

    state = {"x": torch.arange(5.0)}
    plain = write(tmp_path / "plain.safetensors", state)
    content = plain.read_bytes()
    body = content[8 + int.from_bytes(content[:8], "little") :]
    assert short_hash(plain) == sha256(body).hexdigest()[:12]
    said = write(tmp_path / "said.safetensors", state, {"sshs_model_hash": "ab" * 32})
    assert short_hash(said) == "ab" * 6
    odd = write(tmp_path / "odd.safetensors", state, {"sshs_model_hash": "../x"})
    assert short_hash(odd) == short_hash(plain)


def test_a_request_gets_the_files_hash(model: Model, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", kohya(unet_pairs()))
    model.adapters.paths = AdapterPaths({"a": file})
    request = resolve_adapters(model, Request("x <lora:a:0.5>"))
    assert (request.prompt, request.loras) == ("x", (Lora("a", 0.5, 0.5, short_hash(file)),))
    recorded = replace(request, loras=(replace(request.loras[0], hash="0" * 12),))
    assert resolve_adapters(model, recorded) == request
    assert model.adapters.warnings[-1].startswith("the picture's LoRA a has the hash 000000000000")
