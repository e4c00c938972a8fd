"""A model's tensors under the names of a single file in the original layout.

The tables that read such files are turned round: fused layers are put together again, halves
exchanged back, and a VAE's attention is of 1×1 convolutions.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from txt2img.models.configs import TextConfig, UNetConfig
from txt2img.weights.checkpoint import Checkpoint
from txt2img.weights.convert.target import PREFIX, Part
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import Component, published_name
from txt2img.weights.layouts.text_key_maps import text_encoders
from txt2img.weights.layouts.transformer_key_maps import layers_of

Parts = dict[str, Part]
# ComfyUI's names of text encoders by diffusers', where the network is a transformer.
_TEXTS = {
    "FLUX.1": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "Stable Diffusion 3": {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        "text_encoder_3": "t5xxl",
    },
}
_FUSED = {"q_proj": 0, "k_proj": 1, "v_proj": 2}  # OpenCLIP's order


def original_parts(checkpoint: Checkpoint) -> dict[str, Parts]:
    """The tensors of each component as a single file has them, prefixes included."""
    network = checkpoint.family.network
    return {
        name: _network(checkpoint, part)
        if name == network.component
        else _vae(checkpoint, part)
        if name == "vae"
        else _text(checkpoint, name, part)
        for name, part in checkpoint.components.items()
    }


def _network(checkpoint: Checkpoint, part: Component) -> Parts:
    network = checkpoint.family.network
    if isinstance(network, UNetConfig):
        back = key_maps.inverted(key_maps.unet_from_ldm(network))
        return _renamed(part.tensors, back, PREFIX)
    layers = layers_of(network)
    places: dict[str, dict[int, TensorRef]] = {}
    for name, ref in part.tensors.items():
        layer, _, kind = name.rpartition(".")
        swapped = ref.swap_halves() if layer in layers.swapped else ref
        whole = next((parts for parts in layers.fused.values() if layer in parts), None)
        theirs = f"{layers.original(layer)}.{kind}" if whole else layers.original(name)
        places.setdefault(theirs, {})[list(whole).index(layer) if whole else 0] = swapped
    return _parts({f"{PREFIX}{name}": refs for name, refs in places.items()})


def _vae(checkpoint: Checkpoint, part: Component) -> Parts:
    vae = checkpoint.family.vae
    table = key_maps.vae_from_ldm(vae)
    if vae.patch == 1:
        table = {n: o for n, o in table.items() if o not in ("quant_conv", "post_quant_conv")}
    convs = {
        name: replace(ref, shape=(*ref.shape, 1, 1))
        if ".attentions.0." in name and len(ref.shape) == 2
        else ref
        for name, ref in part.tensors.items()
        if not name.startswith("alpha.")
    }
    is_unet = checkpoint.family.network.component == "unet"
    return _renamed(convs, key_maps.inverted(table), f"{key_maps.VAE}." if is_unet else "vae.")


def _text(checkpoint: Checkpoint, name: str, part: Component) -> Parts:
    family = checkpoint.family
    config = family.texts[list(checkpoint.tokenizers).index(name)]
    if family.network.component == "unet":
        assert isinstance(config, TextConfig)
        is_second = len(family.texts) > 1 and name == "text_encoder_2"
        return _unet_text(len(family.texts) > 1, is_second, config, part)
    names = next((row for start, row in _TEXTS.items() if family.name.startswith(start)), None)
    prefix = f"text_encoders.{(names or {}).get(name, 'qwen3_4b')}.transformer."
    if isinstance(config, TextConfig):
        return _clip(part, prefix)
    return _parts({f"{prefix}{n}": {0: ref} for n, ref in language_model(part).items()})


def _unet_text(has_two: bool, is_second: bool, config: TextConfig, part: Component) -> Parts:
    """The text encoder of a U-Net: CLIP-L by transformers' names, others by OpenCLIP's."""
    if config.act == "quick_gelu":
        return _clip(part, f"{key_maps.XL_CLIP if has_two else key_maps.CLIP}.")
    prefix = key_maps.REFINER_CLIP if config.projection else key_maps.OPEN_CLIP
    return _open_clip(part, config, f"{key_maps.XL_OPEN_CLIP if is_second else prefix}.")


def _clip(part: Component, prefix: str) -> Parts:
    """CLIP by transformers' names."""

    def theirs(name: str) -> str:
        bare = published_name(name)
        return f"{prefix}{bare if bare.startswith('text_projection') else f'text_model.{bare}'}"

    return _parts({theirs(name): {0: ref} for name, ref in part.tensors.items()})


def _open_clip(part: Component, config: TextConfig, prefix: str) -> Parts:
    """CLIP by OpenCLIP's names, queries, keys and values fused."""
    back = key_maps.inverted(key_maps.clip_from_open_clip(config.layers, bool(config.projection)))
    back |= {"text_projection.weight": "text_projection"}
    places: dict[str, dict[int, TensorRef]] = {}
    for name, ref in part.tensors.items():
        layer, _, kind = published_name(name).rpartition(".")
        theirs = key_maps.rename(published_name(name), back) or name
        index = _FUSED.get(layer.rpartition(".")[2])
        if index is not None:
            theirs = f"{theirs.rpartition('.')[0].rpartition('.')[0]}.in_proj_{kind}"
        turned = ref.transpose() if theirs == "text_projection" else ref
        places.setdefault(f"{prefix}{theirs}", {})[index or 0] = turned
    return _parts(places)


def language_model(part: Component) -> dict[str, TensorRef]:
    """A T5's or Qwen3's tensors by transformers' names, those that no picture needs too."""
    refs = [*part.tensors.values()]
    used = {(ref.path, ref.start) for ref in refs}
    for path in {ref.path for ref in refs}:
        beside = sorted(path.parent.glob("*.index*.json")) if "-of-" in path.name else []
        header = safetensors_file.sharded(beside[0]) if beside else safetensors_file.header(path)
        for prefix in text_encoders(header.tensors):
            inside = _inside(header.tensors, prefix)
            if any((ref.path, ref.start) in used for ref in inside.values()):
                return inside
    return part.tensors


def _inside(tensors: Mapping[str, TensorRef], prefix: str) -> dict[str, TensorRef]:
    """The tensors after a prefix, without what programs store beside a text encoder."""
    left = ("spiece_model", "tokenizer_json", "logit_scale")
    inside = key_maps.strip_prefix(tensors, prefix)
    return {name: ref for name, ref in inside.items() if name not in left}


def _renamed(tensors: Mapping[str, TensorRef], back: Mapping[str, str], prefix: str) -> Parts:
    rename: Callable[[str], str | None] = partial(key_maps.rename, table=back)
    return _parts({f"{prefix}{rename(name) or name}": {0: ref} for name, ref in tensors.items()})


def _parts(places: Mapping[str, Mapping[int, TensorRef]]) -> Parts:
    """Parts by name, each of tensors by their place in it."""
    return {
        name: Part(name, tuple(refs[index] for index in sorted(refs)))
        for name, refs in places.items()
    }
