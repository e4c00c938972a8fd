"""Orthogonal finetuning, against formulas written out, and against peft."""

import json
from pathlib import Path

import pytest
import setuptools  # noqa: F401, peft's BOFT needs it before anything imports distutils
import torch
from peft import BOFTConfig, OFTConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.adapters import write
from txt2img.request.adapters import Lora
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.weights.adapters.lycoris import merged_weight
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.model import Model

W = torch.linspace(-1, 1, 48).reshape(8, 6)
KERNEL = torch.linspace(-1, 1, 432).reshape(8, 6, 3, 3)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def saved(made: PeftModel, kinds: dict[str, str], folder: Path, count: int) -> Path:
    """peft's file of an adapter, its `count` tensors named after the U-Net's own layers."""
    made.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    named = {
        name.replace(f"model.{short}", f"model.{kinds[short]}"): value
        for name, value in load_file(file).items()
        for short in kinds
        if f"model.{short}." in name
    }
    assert len(named) == count
    write(file, named)
    return file


def rotation(block: Tensor) -> Tensor:
    """The Cayley transform, by solving R (I − Q) = I + Q."""
    q, one = block - block.T, torch.eye(len(block))
    return torch.linalg.solve((one - q).T, (one + q).T).T


@pytest.mark.parametrize("weight", [W, KERNEL])
def test_diagonal_blocks_rotate_the_rows(weight: Tensor) -> None:
    blocks = random(2, 4, 4)
    whole = torch.block_diag(*(rotation(block) for block in blocks))
    close(whole @ whole.T, torch.eye(8))
    wanted = torch.einsum("pq,p...->q...", whole, weight)
    close(merged_weight(weight, {"oft_blocks": blocks}, None, 1.0), wanted)
    close(merged_weight(weight, {"oft_blocks": blocks}, 0.0, 0.5), (weight + wanted) / 2)
    scale = random(8, *[1] * (weight.ndim - 1))
    rescaled = merged_weight(weight, {"oft_blocks": blocks, "rescale": scale}, None, 1.0)
    close(rescaled, scale * wanted)


def test_alpha_bounds_the_rotation() -> None:
    blocks = random(2, 4, 4)
    q = blocks - blocks.mT
    short = blocks * (0.05 * 8 / q.norm())
    close(
        merged_weight(W, {"oft_blocks": blocks}, 0.05, 1.0),
        merged_weight(W, {"oft_blocks": short}, 0, 1.0),
    )
    close(
        merged_weight(W, {"oft_blocks": short}, 9.0, 1.0),
        merged_weight(W, {"oft_blocks": short}, 0, 1.0),
    )


@pytest.mark.parametrize("weight", [W, KERNEL])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_butterfly_stages_rotate_rows_ever_further_apart(weight: Tensor, strength: float) -> None:
    blocks = random(3, 4, 2, 2)
    wanted = weight.clone()
    for stage in range(3):
        apart = 2**stage
        before, pair = wanted.clone(), 0
        for start in range(0, 8, 2 * apart):
            for row in range(start, start + apart):
                turn = torch.lerp(torch.eye(2), rotation(blocks[stage, pair]), strength)
                a, b = before[row], before[row + apart]
                wanted[row] = turn[0, 0] * a + turn[0, 1] * b
                wanted[row + apart] = turn[1, 0] * a + turn[1, 1] * b
                pair += 1
    close(merged_weight(weight, {"oft_blocks": blocks}, None, strength), wanted)
    assert torch.equal(merged_weight(weight, {"oft_blocks": blocks}, None, 0.0), weight)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_cayley_neumann": False},
        {"num_cayley_neumann_terms": 2},
        {"num_cayley_neumann_terms": 3},
        {"num_cayley_neumann_terms": 7},
        {"block_share": True},
    ],
)
def test_a_peft_adapter_is_merged_as_peft_does(
    settings: dict[str, object], model: Model, tmp_path: Path
) -> None:
    layers = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "conv_out"]
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    theirs = nn.ModuleDict({"to_q": nn.Linear(32, 32, bias=False), "conv_out": nn.Conv2d(32, 4, 3)})
    kinds = {"to_q": layers[0], "conv_out": layers[1]}
    for short, name in kinds.items():
        theirs[short].weight.data = state[f"{name}.weight"].clone()
    theirs.forward = lambda x: x
    config = OFTConfig(
        r=0, oft_block_size=8, target_modules=list(kinds), init_weights=False, **settings
    )
    made = get_peft_model(theirs, config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "oft_R" in name:
                weight.mul_(0.1 / weight.abs().max())
    file = saved(made, kinds, tmp_path, count=2)
    merged = made.merge_and_unload()
    put_on(model, file)
    now = model.network.state_dict()
    for short, name in kinds.items():
        close(now[f"{name}.weight"], merged[short].weight.data)
        assert not torch.equal(now[f"{name}.weight"], state[f"{name}.weight"])
    apply_adapters(model, Request(""))
    assert all(torch.equal(v, state[n]) for n, v in model.network.state_dict().items())


def test_a_peft_boft_is_merged_as_peft_does(model: Model, tmp_path: Path) -> None:
    kinds = {
        "to_q": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "conv_out": "conv_out",
    }
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    theirs = nn.ModuleDict({"to_q": nn.Linear(32, 32, bias=False), "conv_out": nn.Conv2d(32, 4, 3)})
    for short, name in kinds.items():
        theirs[short].weight.data = state[f"{name}.weight"].clone()
    theirs.forward = lambda x: x
    config = BOFTConfig(boft_block_size=8, target_modules=list(kinds), init_weights=False)
    made = get_peft_model(theirs, config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "boft_R" in name:
                weight.copy_(random(*weight.shape) / 5)
            if "boft_s" in name:
                weight.copy_(1 + random(*weight.shape) / 5)
    file = saved(made, kinds, tmp_path, count=4)
    merged = made.merge_and_unload()
    put_on(model, file)
    assert model.adapters.notes[-1].endswith("applied 2 of 2")
    now = model.network.state_dict()
    for short, name in kinds.items():
        close(now[f"{name}.weight"], merged[short].weight.data)
        assert not torch.equal(now[f"{name}.weight"], state[f"{name}.weight"])
    apply_adapters(model, Request(""))
    assert all(torch.equal(v, state[n]) for n, v in model.network.state_dict().items())


def test_pefts_own_config_gives_alpha(model: Model, tmp_path: Path) -> None:
    name = "base_model.model.conv_out"
    up, down = random(4, 2, 1, 1), random(2, 32, 3, 3)
    file = write(
        tmp_path / "adapter_model.safetensors",
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up},
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": 2}))
    before = model.network.conv_out.weight.clone()
    put_on(model, file)
    wanted = before + 3 * (up.flatten(1) @ down.flatten(1)).reshape(before.shape)
    close(model.network.conv_out.weight, wanted)


@pytest.mark.parametrize("prefix", ["oft_unet_", "lora_unet_", "lycoris_"])
def test_names_of_other_trainers_are_known(prefix: str, model: Model, tmp_path: Path) -> None:
    blocks = random(2, 2, 2)
    before = model.network.conv_out.weight.clone()
    put_on(model, write(tmp_path / "turn.safetensors", {f"{prefix}conv_out.oft_blocks": blocks}))
    whole = torch.block_diag(*(rotation(block) for block in blocks))
    wanted = torch.einsum("pq,p...->q...", whole, before)
    close(model.network.conv_out.weight, wanted)


@pytest.mark.parametrize("early", [False, True])
def test_glora_multiplies_the_weight_and_adds(early: bool) -> None:
    a1, a2, b1, b2 = random(6, 2), random(2, 6), random(8, 2), random(2, 6)
    names = ("a2", "a1", "b2", "b1") if early else ("a1", "a2", "b1", "b2")
    parts = dict(zip(names, (a1, a2, b1, b2), strict=True))
    wanted = W + 0.5 * (3 / 2) * (W @ a1 @ a2 + b1 @ b2)
    close(merged_weight(W, parts, 3.0, 0.5), wanted)


def test_gloras_convolutions_may_have_a_core() -> None:
    a1, a2, b1 = random(6, 2, 1, 1), random(2, 6, 1, 1), random(8, 2, 1, 1)
    b2, core, small = random(2, 6, 3, 3), random(2, 2, 3, 3), random(2, 6, 1, 1)
    square = (a1.flatten(1) @ a2.flatten(1)).T
    turned = nn.functional.conv2d(KERNEL, square[..., None, None])
    parts = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    plain = (b1.flatten(1) @ b2.flatten(1)).reshape(KERNEL.shape)
    close(merged_weight(KERNEL, parts, None, 1.0), KERNEL + turned + plain)
    between = torch.zeros_like(KERNEL)
    for a in range(2):
        for b in range(2):
            between += b1[:, a, None] * core[a, b] * small[b][None]
    parts |= {"b2": small, "bm": core}
    close(merged_weight(KERNEL, parts, None, 1.0), KERNEL + turned + between)


def put_on(model: Model, file: Path) -> None:
    name = file.name.removesuffix(".safetensors")
    model.adapters.paths = AdapterPaths({name: file})
    request = resolve_adapters(model, Request("x", loras=(Lora(name),)))
    apply_adapters(model, request)
