"""Transformers in the layout of single files and of folders: complete lists at full size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.transformers import FLUX2, PUBLISHED, State, config_of, full, original
from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.flux import FluxTransformer
from txt2img.models.flux2 import Flux2Transformer
from txt2img.models.sd3 import SD3Transformer
from txt2img.models.z_image import ZImageTransformer
from txt2img.weights.formats import safetensors_file, tensors
from txt2img.weights.formats.safetensors_file import TensorRef

NETWORKS = {
    "FluxTransformer2DModel": FluxTransformer,
    "Flux2Transformer2DModel": Flux2Transformer,
    "SD3Transformer2DModel": SD3Transformer,
    "ZImageTransformer2DModel": ZImageTransformer,
}
Shapes = dict[str, tuple[int, ...]]


def shapes(state: State | dict[str, TensorRef]) -> Shapes:
    return {name: tuple(value.shape) for name, value in state.items()}


def refs(state: State) -> dict[str, TensorRef]:
    return {n: TensorRef(Path("x"), n, "F32", tuple(v.shape), 0) for n, v in state.items()}


def one_column(state: State) -> State:
    """Different numbers in as many rows as each tensor has, and in one column."""
    return {
        name: torch.arange(len(v)).reshape(-1, *[1] * (v.ndim - 1)) + 7.0 * index
        for index, (name, v) in enumerate(state.items())
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_named_and_shaped_as_in_diffusers(name: str) -> None:
    theirs, (architecture, _) = full(name), PUBLISHED[name]
    with torch.device("meta"):
        ours = NETWORKS[type(theirs).__name__](architecture.from_diffusers(config_of(theirs)))
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_single_file_has_the_config_of_the_folder(name: str) -> None:
    theirs, (architecture, _) = full(name), PUBLISHED[name]
    wanted = architecture.from_diffusers(config_of(theirs))
    single = refs(original(theirs.state_dict(), architecture.layers(wanted)))
    assert architecture.from_tensors(single) == wanted
    assert shapes(architecture.layers(wanted).renamed(single)) == shapes(theirs.state_dict())
    first = next(
        n for n in single if n.startswith(("img_in.w", "x_embedder.")) and n.endswith("weight")
    )
    with pytest.raises(UnknownLayout, match=rf"{first} is missing"):
        architecture.from_tensors({n: ref for n, ref in single.items() if n != first})


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_single_file_is_read_as_diffusers_converts_it(name: str, tmp_path: Path) -> None:
    theirs, (architecture, _) = full(name), PUBLISHED[name]
    state = one_column(theirs.state_dict())
    layers = architecture.layers(architecture.from_diffusers(config_of(theirs)))
    single = original(state, layers)
    save_file({n: v.contiguous() for n, v in single.items()}, tmp_path / "x.safetensors")
    found = layers.renamed(safetensors_file.header(tmp_path / "x.safetensors").tensors)
    ours = tensors.read(found, torch.device("cpu"), torch.float32)
    for prefix in ("", "model.diffusion_model."):
        if prefix and architecture is FLUX2:  # whose converter does not strip it
            continue
        named = {f"{prefix}{n}": v for n, v in single.items()}
        same(ours, architecture.to_diffusers(named))
        assert not named  # none left over
    same(ours, state)


def same(got: dict[str, Tensor], wanted: State) -> None:
    assert got.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(got[name], wanted[name])]


def test_a_fused_tensor_of_another_size_is_told() -> None:
    architecture, _ = PUBLISHED["flux-dev"]
    theirs = full("flux-dev")
    layers = architecture.layers(architecture.from_diffusers(config_of(theirs)))
    single = refs(original(theirs.state_dict(), layers))
    name = "single_blocks.3.linear1.weight"
    single[name] = replace(single[name], shape=(21503, 3072))
    with pytest.raises(MissingWeights, match=r"linear1\.weight. has the shape .*21504"):
        layers.renamed(single)


def test_our_names_are_told_as_the_file_has_them() -> None:
    architecture, _ = PUBLISHED["flux-dev"]
    layers = architecture.layers(architecture.from_diffusers(config_of(full("flux-dev"))))
    for ours, theirs in (
        ("transformer_blocks.2.attn.add_k_proj.bias", "double_blocks.2.txt_attn.qkv.bias"),
        ("single_transformer_blocks.1.proj_mlp.weight", "single_blocks.1.linear1.weight"),
        ("transformer_blocks.0.attn.norm_k.weight", "double_blocks.0.img_attn.norm.key_norm.scale"),
        ("norm_out.linear.weight", "final_layer.adaLN_modulation.1.weight"),
    ):
        assert layers.original(ours) == theirs
