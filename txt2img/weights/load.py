"""Load a model: open its checkpoint, build its networks, read their weights onto the device."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from txt2img.errors import BadFile
from txt2img.models.configs import (
    Flux2Config,
    FluxConfig,
    NetworkConfig,
    Qwen3TextConfig,
    SD3Config,
    T5TextConfig,
    TextConfig,
    TextEncoderConfig,
    TinyConfig,
    UNetConfig,
    VAEConfig,
    ZImageConfig,
)
from txt2img.models.optimize.cuda_graph import CudaGraphed, record_on_card
from txt2img.models.optimize.packed import pack, packable_weights, packed_weights
from txt2img.models.optimize.quantize import quantize
from txt2img.models.optimize.upcast import keep_stored_dtype, stored_dtype_weights
from txt2img.models.taesd import AnyVAE, vae_of
from txt2img.models.text_encoder import TextEncoder, TextEncoders
from txt2img.models.tokenizer import PromptTokenizer, Tokenizer
from txt2img.models.unet import UNet
from txt2img.request.resolve import NO_OVERRIDES, ComponentOverrides
from txt2img.system.device import offload
from txt2img.system.device.device import Device, choose
from txt2img.system.device.memory import CPU, MemoryState
from txt2img.system.device.offload import Placement
from txt2img.system.text import shown
from txt2img.weights import tokenizer_files
from txt2img.weights.checkpoint import Checkpoint, check_complete, check_quantize, open_checkpoint
from txt2img.weights.families import Family, keeps_float8
from txt2img.weights.formats import tensors
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.components import Component, check_depth, check_tensors, published_name
from txt2img.weights.layouts.taesd import vae_warnings
from txt2img.weights.layouts.vae import open_vae
from txt2img.weights.model import AdapterState, Model, device_of
from txt2img.weights.registry.hashes import hash_in_background, set_compiler_cache

if TYPE_CHECKING:
    from txt2img.models.prompt_encoders import PromptEncoder

Network = TypeVar("Network", bound=nn.Module)

NOT_COMPILED = (
    "--compile is for models that lie on a CUDA card as a whole: this one is not compiled"
)


def load(
    name_or_path: str = "default",
    device: Device | str | None = None,
    prediction: str | None = None,
    vae_path: str | None = None,
    overrides: ComponentOverrides = NO_OVERRIDES,
    dtype: str | None = None,
) -> Model:
    """Load a model onto a device, by default the best there is, with the VAE at `vae_path`.

    `device` and `dtype` are named as on the command line, such as "cuda" and "fp16". `prediction`,
    "eps" or "v", overrides the files; a model with `overrides` has a hash of all its files. Raises
    BadRequest, ModelNotFound, UnknownLayout, MissingWeights, BadFile, naming what is wrong.
    """
    device = device if isinstance(device, Device) else choose(device, dtype)
    checkpoint = open_checkpoint(name_or_path, prediction, overrides)
    if not checkpoint.family.network.fits_half:
        device = device.without_overflow()
    check_quantize(checkpoint, device.quantize)
    check_complete(checkpoint, vae_path)
    adapters = AdapterState()
    vae_config: VAEConfig | TinyConfig = checkpoint.family.vae
    if vae_path is not None:
        other = open_vae(vae_path, checkpoint.family.vae)
        vae_config = other.config
        components = checkpoint.components | {"vae": other.component}
        checkpoint = replace(checkpoint, components=components)
        adapters.vae = other.record
        adapters.warnings += vae_warnings(other.record.name, checkpoint.family.vae)
    placement = choose_placement(checkpoint, device)
    with hash_in_background(checkpoint.weights) as digest:
        vae = build_network(lambda: vae_of(vae_config), "vae", checkpoint.components["vae"], device)
        load_component(vae, "vae", checkpoint.components["vae"], device, placement)
        model = build_empty(checkpoint, device, vae)
        model.adapters = adapters
        model.memory.quantized, model.memory.placement = device.quantize, placement
        load_weights(model, device)
        model.hash = digest()
    return model


def build_empty(checkpoint: Checkpoint, device: Device, vae: AnyVAE) -> Model:
    """A model without hash, whose networks other than the VAE are on the meta device.

    Raises as `load` does.
    """
    family, components = checkpoint.family, checkpoint.components
    part = components[family.network.component]
    check_depth(family.network, part)
    network = build_network(
        partial(network_of, family.network), family.network.component, part, device
    )
    _pack(network, part, keeps_float8(family))
    texts = zip(family.texts, checkpoint.tokenizers.items(), strict=True)
    encoders = [
        build_network(partial(text_encoder_of, config, tokenizer), name, components[name], device)
        for config, (name, tokenizer) in texts
    ]
    for encoder, name in zip(encoders, checkpoint.tokenizers, strict=True):
        _pack(encoder, components[name], keeps_float8(family))
    for config, (name, tokenizer) in zip(family.texts, checkpoint.tokenizers.items(), strict=True):
        tokenizer_files.check_vocab(name, tokenizer.vocab, config.vocab)
    text = prompt_encoder_of(family, encoders)
    memory = MemoryState(low_memory=device.low, optimize=device.optimize)
    return Model(
        checkpoint.name, "", family, network, vae, text, memory=memory, checkpoint=checkpoint
    )


def network_of(config: NetworkConfig) -> nn.Module:
    """The network of a config: the one place that knows which architecture that is."""
    if isinstance(config, UNetConfig):
        return UNet(config)
    if isinstance(config, FluxConfig):
        from txt2img.models.flux import FluxTransformer

        return FluxTransformer(config)
    if isinstance(config, SD3Config):
        from txt2img.models.sd3 import SD3Transformer

        return SD3Transformer(config)
    if isinstance(config, ZImageConfig):
        from txt2img.models.z_image import ZImageTransformer

        return ZImageTransformer(config)
    assert isinstance(config, Flux2Config)
    from txt2img.models.flux2 import Flux2Transformer

    return Flux2Transformer(config)


def text_encoder_of(config: TextEncoderConfig, tokenizer: PromptTokenizer) -> nn.Module:
    """The text encoder of a config, with its tokenizer."""
    if isinstance(config, TextConfig):
        assert isinstance(tokenizer, Tokenizer)
        return TextEncoder(config, tokenizer)
    from txt2img.models.text_tokenizer import TextTokenizer

    assert isinstance(tokenizer, TextTokenizer)
    if isinstance(config, T5TextConfig):
        from txt2img.models.t5 import T5TextEncoder

        return T5TextEncoder(config, tokenizer)
    from txt2img.models.qwen3 import Qwen3TextEncoder

    assert isinstance(config, Qwen3TextConfig)
    return Qwen3TextEncoder(config, tokenizer)


def prompt_encoder_of(
    family: Family, encoders: Sequence[nn.Module]
) -> "TextEncoder | TextEncoders | PromptEncoder":
    """A family's text encoders as one that encodes prompts."""
    if family.prompt_encoder == "clip":
        clips = [one for one in encoders if isinstance(one, TextEncoder)]
        return TextEncoders(clips) if clips[1:] else clips[0]
    from txt2img.models import prompt_encoders

    if family.prompt_encoder == "sd3":
        return prompt_encoders.SD3Text(encoders, family.network.cross_dim)
    kinds = {
        "flux": prompt_encoders.FluxText,
        "z-image": prompt_encoders.ZImageText,
        "flux2": prompt_encoders.Flux2Text,
    }
    return kinds[family.prompt_encoder](encoders)


def load_weights(model: Model, device: Device) -> None:
    """Read the weights of a model's networks, but for the VAE's. Raises MissingWeights, BadFile.

    On a CUDA card, set the fastest memory format and record or compile the one that denoises.
    """
    checkpoint, placement = model.checkpoint, model.memory.placement
    assert checkpoint is not None
    networks = {
        model.family.network.component: model.network,
        **dict(zip(checkpoint.tokenizers, model.text.encoders, strict=True)),
    }
    for name, network in networks.items():
        load_component(network, name, checkpoint.components[name], device, placement)
    if device.quantize:
        quantize(model.network, device.quantize)
    if device.torch_device.type != "cuda" or not device.optimize:
        return
    for conv_network in (model.network, model.vae):
        conv_network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if placement.mode == "none":
        cache = set_compiler_cache() if device.compile else ""
        model.graphed = CudaGraphed(
            model.network, lambda line: model.memory.warn(line), record_on_card, cache
        )


def choose_placement(checkpoint: Checkpoint, device: Device) -> Placement:
    """Choose between --offload's ways, with notes for the user. Raises BadRequest."""
    float8 = keeps_float8(checkpoint.family)
    sizes = {
        name: sum(_size(ref, device.dtype_of(name), float8) for ref in component.tensors.values())
        for name, component in checkpoint.components.items()
    }
    where = device.torch_device
    free = offload.free_memory(where) if device.offload == "auto" else None
    mode, line = offload.choose_mode(device.offload, where, sizes, free)
    notes = [line] if line else []
    if device.compile and (where.type != "cuda" or mode != "none"):
        notes.append(NOT_COMPILED)
    return Placement(where, mode, tuple(notes))


def _size(ref: TensorRef, dtype: torch.dtype, float8: bool) -> int:
    """The bytes of a weight in memory."""
    if tensors.is_packable(ref) and (float8 or not ref.is_float8):
        return ref.nbytes
    return dtype.itemsize * torch.Size(ref.shape).numel()


def load_vae(name: str, model: Model) -> AnyVAE:
    """Load another VAE on the device and in the dtype of a model's own.

    Raises as `open_vae` and `load` do; warnings go to the model.
    """
    dtype = next(model.vae.parameters()).dtype
    device = Device(device_of(model), dtype, optimize=model.memory.optimize)
    other = open_vae(name, model.family.vae)
    model.adapters.warnings += vae_warnings(other.record.name, model.family.vae)
    vae = build_network(lambda: vae_of(other.config), "vae", other.component, device)
    load_component(vae, "vae", other.component, device, Placement())
    return vae


def build_network(
    build: Callable[[], Network], name: str, component: Component, device: Device
) -> Network:
    """A network on the meta device, after comparing its tensors with the file's."""
    with torch.device("meta"):
        network = build()
    shapes = {published_name(n): tuple(value.shape) for n, value in network.state_dict().items()}
    check_tensors(name, component, shapes)
    if device.low or keeps_filters_narrow(name, device):
        keep_stored_dtype(network, filters_only=not device.low)
    return network.eval().requires_grad_(False)


def _pack(network: nn.Module, component: Component, float8: bool) -> None:
    """Let the network's weights that are quantised stay so in memory, with `float8` those too."""
    if not _is_narrow(component):
        return
    for name in packable_weights(network):
        ref = component.tensors[published_name(name)]
        if tensors.is_packable(ref) and (float8 or not ref.is_float8):
            layer = network.get_submodule(name.rpartition(".")[0])
            pack(layer, tensors.block_shape(ref), tensors.unpack_of(ref), ref.rotation)


def _is_narrow(component: Component) -> bool:
    """Whether some of a component's weights may be packed."""
    return any(ref.is_quantized or ref.is_float8 for ref in component.tensors.values())


def keeps_filters_narrow(component: str, device: Device) -> bool:
    """Whether large filters stay in their stored dtype: true in float32 on a CPU.

    There they are copied into a faster layout, and would be in memory twice.
    """
    on_cpu = device.torch_device.type == "cpu" and device.optimize
    return on_cpu and device.dtype_of(component) == torch.float32


@torch.inference_mode(False)
def load_component(
    network: nn.Module, name: str, component: Component, device: Device, placement: Placement
) -> None:
    """Read a network's weights, or with --low-memory on a CPU let each use read them."""
    dtype = device.dtype_of(name)
    home = device.torch_device if placement.mode == "none" else CPU
    stored = {component.file_name(published_name(n)) for n in stored_dtype_weights(network)}
    packed = packed_weights(network) if _is_narrow(component) else set()
    paths = {ref.path for ref in component.tensors.values()}
    keys = {path: tensors.file_key(path) for path in paths}

    def read(names: Collection[str]) -> dict[str, Tensor]:
        for path, key in keys.items():
            if tensors.file_key(path) != key:
                raise BadFile(f"{shown(path.name)} was changed while it was in use; start again")
        file_names = {n: component.file_name(published_name(n)) for n in names}
        refs = {file_names[n]: component.tensors[published_name(n)] for n in names}
        blocks = {file_names[n]: refs.pop(file_names[n]) for n in packed.intersection(names)}
        values = tensors.read(refs, home, dtype, keep_dtype=stored)
        values |= tensors.read_packed(blocks, home) if blocks else {}
        return {n: values[file_names[n]] for n in names}

    if device.low and device.torch_device.type == "cpu" and placement.device is not None:
        network.to(dtype)
        placement.lazy_readers[network] = read
    else:
        network.load_state_dict(read(network.state_dict()), strict=True, assign=True)
    network.requires_grad_(False)
