"""Each method merges into a weight as a formula written out entry by entry."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.adapters import write
from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.request.adapters import Lora
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import Device
from txt2img.weights.adapters.lycoris import merged_bias, merged_weight, surely_fits
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.model import Model

W = torch.linspace(-1, 1, 24).reshape(4, 6)
KERNEL = torch.linspace(-1, 1, 216).reshape(4, 6, 3, 3)
CPU = Device(torch.device("cpu"), torch.float32)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_lora_is_a_sum_of_outer_products() -> None:
    up, down = random(4, 2), random(2, 6)
    outer = sum(up[:, r, None] * down[None, r] for r in range(2))
    close(merged_weight(W, {"up": up, "down": down}, None, 1.0), W + outer)
    close(merged_weight(W, {"up": up, "down": down}, 3.0, 0.5), W + 0.5 * 3 / 2 * outer)


def test_loha_multiplies_two_of_them_entry_by_entry() -> None:
    parts = {
        f"hada_w{n}_{ab}": random(
            *shape,
        )
        for n in (1, 2)
        for ab, shape in (("a", (4, 2)), ("b", (2, 6)))
    }
    parts["hada_w2_a"] = parts["hada_w2_a"] * 2 + 1
    wanted = W.clone()
    for i in range(4):
        for j in range(6):
            one = sum(parts["hada_w1_a"][i, r] * parts["hada_w1_b"][r, j] for r in range(2))
            two = sum(parts["hada_w2_a"][i, r] * parts["hada_w2_b"][r, j] for r in range(2))
            wanted[i, j] += 0.5 * (4.0 / 2) * one * two
    close(merged_weight(W, parts, 4.0, 0.5), wanted)


def test_lohas_convolutions_have_a_core() -> None:
    parts = {"hada_t1": random(2, 2, 3, 3), "hada_w1_a": random(2, 4), "hada_w1_b": random(2, 6)}
    parts |= {name.replace("1", "2", 1): 0.5 - value for name, value in parts.items()}
    wanted = KERNEL.clone()
    for o in range(4):
        for i in range(6):
            product = torch.ones(3, 3)
            for n in (1, 2):
                core, a, b = (parts[f"hada_{part}"] for part in (f"t{n}", f"w{n}_a", f"w{n}_b"))
                product *= sum(
                    (core[p, q] * a[p, o] * b[q, i] for p in range(2) for q in range(2)),
                    torch.zeros(3, 3),
                )
            wanted[o, i] += product
    close(merged_weight(KERNEL, parts, None, 1.0), wanted)


def kron(small: Tensor, large: Tensor) -> Tensor:
    """The Kronecker product of a matrix with a matrix or a convolution's weight, by blocks."""
    return torch.cat([torch.cat([x * large for x in row], dim=1) for row in small], dim=0)


def test_lokr_is_a_kronecker_product() -> None:
    one, two = random(2, 3), random(2, 2)
    close(merged_weight(W, {"lokr_w1": one, "lokr_w2": two}, 9.0, 2.0), W + 2 * kron(one, two))
    low = {"lokr_w1": one, "lokr_w2_a": random(2, 1), "lokr_w2_b": random(1, 2)}
    product = kron(one, low["lokr_w2_a"] * low["lokr_w2_b"])
    close(merged_weight(W, low, 3.0, 1.0), W + 3.0 / 1 * product)
    both = {"lokr_w1_a": random(2, 2), "lokr_w1_b": random(2, 3), "lokr_w2": two}
    wanted = W + 3.0 / 2 * kron(both["lokr_w1_a"] @ both["lokr_w1_b"], two)
    close(merged_weight(W, both, 3.0, 1.0), wanted)


def test_lokrs_convolutions_are_whole_or_have_a_core() -> None:
    one, two = random(2, 3), random(2, 2, 3, 3)
    close(
        merged_weight(KERNEL, {"lokr_w1": one, "lokr_w2": two}, None, 1.0), KERNEL + kron(one, two)
    )
    flat = {"lokr_w1": one, "lokr_w2_a": random(2, 2), "lokr_w2_b": random(2, 18)}
    large = (flat["lokr_w2_a"] @ flat["lokr_w2_b"]).reshape(2, 2, 3, 3)
    close(merged_weight(KERNEL, flat, None, 1.0), KERNEL + kron(one, large))
    core, a, b = random(2, 2, 3, 3), random(2, 2), 0.5 - random(2, 2)
    large = torch.zeros(2, 2, 3, 3)
    for o in range(2):
        for i in range(2):
            for p in range(2):
                for q in range(2):
                    large[o, i] += core[p, q] * a[p, o] * b[q, i]
    parts = {"lokr_w1": one, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
    close(merged_weight(KERNEL, parts, None, 1.0), KERNEL + kron(one, large))


def test_ia3_scales_rows_or_columns() -> None:
    rows, columns = random(4), random(6)
    for i in range(4):
        close(merged_weight(W, {"on_output": rows}, None, 0.5)[i], W[i] * (1 + 0.5 * rows[i]))
    for j in range(6):
        got = merged_weight(KERNEL, {"on_input": columns[None]}, None, 1.0)
        close(got[:, j], KERNEL[:, j] * (1 + columns[j]))


def test_whole_differences_and_norms_are_added() -> None:
    close(merged_weight(W, {"diff": 2 * W}, 5.0, 0.5), 2 * W)
    close(merged_weight(W[0], {"w_norm": W[1], "b_norm": W[2]}, None, 2.0), W[0] + 2 * W[1])
    close(merged_bias(W[0], {"w_norm": W[1], "b_norm": W[2]}, 2.0), W[0] + 2 * W[2])
    close(merged_bias(W[0], {"diff_b": W[1]}, -1.0), W[0] - W[1])


@pytest.mark.parametrize("weight", [W, KERNEL])
def test_dora_sets_the_length_of_rows_or_columns(weight: Tensor) -> None:
    up, down = random(4, 2), random(2, weight[0].numel())
    whole = weight + (up @ down).reshape(weight.shape)
    ones = [1] * (weight.ndim - 2)
    for length, rows in (
        (random(6).abs().reshape(1, 6, *ones), whole.transpose(0, 1)),
        (random(4).abs().reshape(4, 1, *ones), whole),
        (random(4).abs(), whole),
    ):
        got = merged_weight(weight, {"up": up, "down": down, "dora": length}, None, 1.0)
        got = got if rows is whole else got.transpose(0, 1)
        for mine, row, wanted in zip(got, rows, length.flatten(), strict=True):
            close(mine.norm(), wanted)
            close(mine / mine.norm(), row / row.norm())
    half = merged_weight(weight, {"up": up, "down": down, "dora": length}, None, 0.5)
    full = merged_weight(weight, {"up": up, "down": down, "dora": length}, None, 1.0)
    close(half, (weight + full) / 2)


def put_on(model: Model, file: Path) -> list[str]:
    model.adapters.paths = AdapterPaths({file.stem: file})
    apply_adapters(model, resolve_adapters(model, Request("", loras=(Lora(file.stem),))))
    return model.adapters.notes


def test_files_of_every_method_reach_their_layers(model: Model, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in model.network.state_dict().items()}
    to_q, norm = (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.resnets.0.norm1",
    )
    conv, time, out = "conv_in", "time_embedding.linear_1", "conv_out"
    flat = {name: f"lora_unet_{name.replace('.', '_')}" for name in (to_q, norm, conv, time, out)}
    file = write(
        tmp_path / "all.safetensors",
        {
            f"{flat[to_q]}.lokr_w1": random(8, 8),
            f"{flat[to_q]}.lokr_w2": random(8, 8),
            f"{flat[to_q]}.alpha": torch.tensor(1.0),
            f"{flat[norm]}.w_norm": torch.ones(64),
            f"{flat[norm]}.b_norm": torch.full((64,), 2.0),
            f"{flat[conv]}.diff": torch.ones(32, 4, 3, 3),
            f"{flat[conv]}.diff_b": torch.full((32,), 3.0),
            f"{flat[time]}.weight": torch.ones(128),
            f"{flat[time]}.on_input": torch.tensor(False),
            f"{flat[out]}.hada_w1_a": torch.ones(4, 1),
            f"{flat[out]}.hada_w1_b": torch.ones(1, 288),
            f"{flat[out]}.hada_w2_a": torch.ones(4, 1),
            f"{flat[out]}.hada_w2_b": torch.ones(1, 288),
            f"{flat[out]}.dora_scale": torch.ones(1, 32, 1, 1),
        },
    )
    assert put_on(model, file) == ["LoRA all: applied 5 of 5"]
    now = model.network.state_dict()
    close(now[f"{to_q}.weight"], state[f"{to_q}.weight"] + kron(random(8, 8), random(8, 8)))
    close(now[f"{norm}.weight"], state[f"{norm}.weight"] + 1)
    close(now[f"{norm}.bias"], state[f"{norm}.bias"] + 2)
    close(now[f"{conv}.weight"], state[f"{conv}.weight"] + 1)
    close(now[f"{conv}.bias"], state[f"{conv}.bias"] + 3)
    close(now[f"{time}.weight"], 2 * state[f"{time}.weight"])
    close(now[f"{out}.weight"].pow(2).sum(dim=(0, 2, 3)), torch.ones(32))
    apply_adapters(model, Request(""))
    assert all(
        torch.equal(value, state[name]) for name, value in model.network.state_dict().items()
    )


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"diff": random(4, 32, 3, 4)}, MissingWeights),
        ({"diff": torch.tensor(1.0)}, MissingWeights),
        ({"lokr_w1": random(3, 3), "lokr_w2": random(3, 3)}, MissingWeights),
        ({"hada_w1_a": random(4, 2), "hada_w1_b": random(2, 288)}, MissingWeights),
        ({"weight": random(5), "on_input": torch.tensor(True)}, MissingWeights),
        ({"diff_b": random(5)}, MissingWeights),
        ({"lora_down.weight": random(2, 288), "dora_scale": random(4)}, MissingWeights),
        ({"on_input": torch.tensor(True)}, UnknownLayout),
        ({"weight": random(4)}, UnknownLayout),
        ({"oft_blocks": random(4)}, MissingWeights),
        ({"oft_blocks": random(3, 2, 2)}, MissingWeights),
        ({"oft_blocks": random(2, 2, 1)}, MissingWeights),
        ({"oft_blocks": random(3, 2, 2, 2)}, MissingWeights),
        ({"oft_blocks": random(2, 2, 2), "dora_scale": random(4)}, MissingWeights),
        ({"oft_R.weight": random(2, 2)}, MissingWeights),
        ({"a1.weight": random(32, 2), "a2.weight": random(2, 32)}, MissingWeights),
        ({"rescale": random(4)}, MissingWeights),
        ({"oft_diag": random(4)}, UnknownLayout),
    ],
)
def test_what_does_not_fit_is_refused(
    tensors: dict[str, Tensor], kind: type[Exception], model: Model, tmp_path: Path
) -> None:
    state = {f"lora_unet_conv_out.{name}": value for name, value in tensors.items()}
    with pytest.raises(kind) as caught:
        put_on(model, write(tmp_path / "bad.safetensors", state))
    assert "\n" not in str(caught.value)


def test_what_surely_fits_can_be_merged() -> None:
    """And what cannot is never said to fit; linear layers and 1×1 convolutions are the same."""
    shapes = [
        (4,),
        (4, 6),
        (4, 6, 1, 1),
        (4, 6, 3, 3),
        (2, 6),
        (2, 6, 3, 3),
        (4, 2),
        (4, 4),
        (0, 6),
        (),
    ]
    sure = 0
    for weight, down, up in product(shapes[1:4], shapes, shapes):
        said = surely_fits(weight, {"down": down, "up": up})
        try:
            parts = {"down": torch.ones(down), "up": torch.ones(up)}
            merged_weight(torch.zeros(weight), parts, None, 1.0)
        except (RuntimeError, ValueError, IndexError):
            assert not said, (weight, down, up)
        else:
            sure += said
    assert sure == 8
    assert not surely_fits((4, 6), {"down": (2, 6), "up": (4, 2), "mid": (2, 2, 1, 1)})
