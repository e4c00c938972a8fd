"""Load a model: open its checkpoint, build its networks, read their weights onto the device."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from txt2img.errors import BadFile
from txt2img.models.clip import TextEncoder, TextEncoders
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
from txt2img.models.taesd import AnyVAE, TinyVAE
from txt2img.models.tokenizer import PromptTokenizer, Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.request.resolve import NO_OVERRIDES, ComponentOverrides
from txt2img.system import resources
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

DENOISERS = ("unet", "transformer")
PART = 0.8  # of the main memory that is free, for weights that wait there for a GPU

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
    device = replace(device, offload=placement.mode)
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
    where, limit = device.torch_device, device.max_memory
    float8 = keeps_float8(checkpoint.family)
    sizes = {
        name: sum(_size(ref, device.dtype_of(name), float8) for ref in component.tensors.values())
        for name, component in checkpoint.components.items()
    }
    on_cpu, all_at_once = where.type == "cpu", sum(sizes.values())
    parts = {"largest": max(sizes.values())} if device.low and on_cpu else sizes
    is_bounded = device.offload == "auto" or limit is not None
    free = offload.free_for(where, limit) if is_bounded else None
    mode, line = resources.choose_mode(device.offload, where.type, parts, free, limit)
    if device.quantize and mode == "sequential":
        mode = "model"  # its weights are not those of the file
    notes = [line] if line else []
    if device.compile and (where.type != "cuda" or mode != "none"):
        notes.append(NOT_COMPILED)
    from_files = mode != "none" and (on_cpu or all_at_once > PART * resources.available())
    return Placement(where, mode, tuple(notes), limit, is_bounded, from_files)


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


def vae_of(config: VAEConfig | TinyConfig) -> AnyVAE:
    """The VAE or TAESD of a config."""
    return TinyVAE(config) if isinstance(config, TinyConfig) else VAE(config)


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


def last_used(
    kept: dict[Hashable, Network],
    wanted: Mapping[Hashable, Callable[[], Network]],
    spare: int,
    placement: Placement,
) -> list[Network]:
    """The networks of these keys, from those kept or loaded; of others the last `spare` stay."""
    for key, load_network in wanted.items():
        network = kept.pop(key, None)
        kept[key] = load_network() if network is None else network  # the last used come last
    for old in [*kept][: -(len(wanted) + spare)]:
        placement.lazy_readers.pop(kept.pop(old), None)
    return [kept[key] for key in wanted]


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
    on_cpu = device.torch_device.type == "cpu" and device.optimize and device.offload == "none"
    return on_cpu and device.dtype_of(component) == torch.float32


@torch.inference_mode(False)
def load_component(
    network: nn.Module, name: str, component: Component, device: Device, placement: Placement
) -> None:
    """Read a network's weights, or let each use read them where they wait in files.

    With --low-memory on a CPU they do.
    """
    dtype = device.dtype_of(name)
    home = device.torch_device if placement.mode == "none" else CPU
    reader = ComponentReader(network, component, home, dtype)
    is_lean = device.low and device.torch_device.type == "cpu" and placement.device is not None
    if is_lean or (placement.from_files and not (device.quantize and name in DENOISERS)):
        network.to(dtype)
        placement.lazy_readers[network] = reader
    else:
        network.load_state_dict(reader.read(network.state_dict()), strict=True, assign=True)
    network.requires_grad_(False)


class ComponentReader:
    """A component's weights by their names in a network, read at once or again for each use.

    Their files may not change meanwhile.
    """

    def __init__(
        self, network: nn.Module, component: Component, home: torch.device, dtype: torch.dtype
    ) -> None:
        self.component, self.home, self.dtype = component, home, dtype
        self.stored = stored_dtype_weights(network)
        self.packed = packed_weights(network) if _is_narrow(component) else set()
        paths = {ref.path for ref in component.tensors.values()}
        self.keys: dict[Path, object] = {path: tensors.file_key(path) for path in paths}
        self.checked = set[str]()  # weights that are known to be finite

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """Read weights to where the network waits. Raises BadFile, MissingWeights."""
        self._check_files()
        files = {name: self._file_name(name) for name in names}
        refs = {files[n]: ref for n, ref in self._refs(names)}
        blocks = {files[n]: refs.pop(files[n]) for n in self.packed.intersection(names)}
        keep = {files[n] for n in self.stored.intersection(names)}
        values = tensors.read(refs, self.home, self.dtype, keep_dtype=keep)
        values |= tensors.read_packed(blocks, self.home) if blocks else {}
        return {n: values[files[n]] for n in names}

    def fill(self, views: Mapping[str, Tensor]) -> None:
        """Read weights into tensors of their shapes in main memory. Raises as `read`.

        Only this thread reads: more would take cores from what computes meanwhile.
        """
        self._check_files()
        files = tensors.Files()
        for name, ref in self._refs(views):
            view, where = views[name].contiguous(), self._file_name(name)
            if name not in self.packed:
                tensors.read_into(where, ref, view, name in self.checked, files)
            elif ref.block is not None and name in self.checked:
                tensors.read_bytes(where, ref, view.view(-1).view(torch.uint8))
            else:
                view.copy_(tensors.read_packed({where: ref}, CPU)[where])
            if not views[name].is_contiguous():  # but channels last
                views[name].copy_(view)
            self.checked.add(name)

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Read some rows of a weight. Raises as `read`."""
        self._check_files()
        [(_, ref)] = self._refs([name])
        parts = {f"{self._file_name(name)} row {i}": ref.take(i, 1) for i in indices}
        values = tensors.read(parts, CPU, self.dtype)
        return torch.cat([values[part] for part in parts])

    def _refs(self, names: Collection[str]) -> Iterator[tuple[str, TensorRef]]:
        """Weights in the order of their files, in which reading is fastest."""
        rows = [(name, self.component.tensors[published_name(name)]) for name in names]
        yield from sorted(rows, key=lambda row: (row[1].path, row[1].start, row[1].rows or ()))

    def _file_name(self, name: str) -> str:
        return self.component.file_name(published_name(name))

    def _check_files(self) -> None:
        for path, key in self.keys.items():
            if tensors.file_key(path) != key:
                raise BadFile(f"{shown(path.name)} was changed while it was in use; start again")
