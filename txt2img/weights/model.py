"""A loaded model: its family, networks, adapters and refiner."""

import platform
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from txt2img.diffusion.conditioning import ScheduledCond
from txt2img.images.record import Origin
from txt2img.models.clip import TextEncoder, TextEncoders
from txt2img.models.optimize.cuda_graph import CudaGraphed
from txt2img.models.optimize.packed import PackedWeight
from txt2img.models.taesd import AnyVAE
from txt2img.models.tokenizer import PromptTokenizer
from txt2img.request.adapters import Embedding, Lora, Refiner, VAERef
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import describe
from txt2img.system.device.memory import MemoryState
from txt2img.system.version import __version__
from txt2img.weights.adapters.lora import Adapter
from txt2img.weights.adapters.textual_inversion import EmbeddingFile
from txt2img.weights.checkpoint import Checkpoint
from txt2img.weights.families import Family
from txt2img.weights.registry.find import SHIPPED

if TYPE_CHECKING:
    from txt2img.models.controlnet import ControlNet
    from txt2img.models.prompt_encoders import PromptEncoder
    from txt2img.models.t2i_adapter import T2IAdapter
    from txt2img.weights.annotator import Annotator
    from txt2img.weights.layouts.clip_vision import EncoderFile
    from txt2img.weights.layouts.control import ControlFile
    from txt2img.weights.layouts.ip_adapter import IPAdapterFile
    from txt2img.weights.upscaler import Upscaler


@dataclass
class AdapterState:
    """Adapters opened for a model, those applied to it, and the values they replaced."""

    paths: AdapterPaths = field(default_factory=lambda: AdapterPaths(model_folders=(SHIPPED,)))
    notes: list[str] = field(default_factory=list)  # for the user, once a file
    details: list[str] = field(default_factory=list)  # those notes that are for who asks for all
    warnings: list[str] = field(default_factory=list)
    lora_files: dict[str, Adapter] = field(default_factory=dict)
    embedding_files: dict[str, EmbeddingFile] = field(default_factory=dict)
    hashes: dict[tuple[str, str], str] = field(default_factory=dict)  # kind of file, name → hash
    vae: VAERef | None = None  # in place of the model's own, as long as it is loaded
    loras: tuple[Lora, ...] = ()  # applied
    embeddings: tuple[Embedding, ...] = ()  # applied
    originals: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # layer, weight or bias
    packed: list[PackedWeight] = field(default_factory=list)  # whose unpacking LoRAs change
    control_files: "dict[str, ControlFile]" = field(default_factory=dict)  # opened, by name
    annotators: "dict[str, Annotator]" = field(default_factory=dict)  # loaded
    upscalers: "dict[str, Upscaler]" = field(default_factory=dict)  # loaded, by name
    token_tables: list[Tensor] = field(default_factory=list)  # of the text encoders' own tokens
    ip_adapters: "dict[str, IPAdapterFile]" = field(default_factory=dict)  # opened, by name
    # By their own paths, and by those of the IP-Adapters that read pictures by them.
    image_encoders: "dict[Path, EncoderFile]" = field(default_factory=dict)
    image_tokens: dict[Hashable, Tensor] = field(default_factory=dict)  # of IP-Adapters' pictures

    def check_hash(self, kind: str, name: str, recorded: str) -> str:
        """A file's hash; warns if a picture was drawn with another."""
        actual = self.hashes[kind, name]
        if recorded and recorded.lower() != actual:
            line = f"the picture's {kind} {name} has the hash {recorded}, this one {actual}"
            if line not in self.warnings:
                self.warnings.append(line)
        return actual


@dataclass
class Model:
    """A family with its weights: all that turns a request into pictures."""

    name: str  # for users; never a path
    hash: str  # ten hex digits of its weights
    family: Family
    network: nn.Module  # that denoises; the family has its config
    vae: AnyVAE
    text: "TextEncoder | TextEncoders | PromptEncoder"
    adapters: AdapterState = field(default_factory=AdapterState)
    memory: MemoryState = field(default_factory=MemoryState)
    graphed: CudaGraphed | None = None  # the network recorded as CUDA graphs, or compiled
    refiner: "SecondStage | None" = None
    checkpoint: Checkpoint | None = None  # the files that its weights come from
    # The last used networks of IP-Adapters, by their files; those of ControlNets.
    image_networks: dict[Hashable, nn.Module] = field(default_factory=dict)
    controls: "dict[Hashable, ControlNet | T2IAdapter]" = field(default_factory=dict)  # likewise
    prompt_cache: dict[Hashable, tuple[ScheduledCond, ...]] = field(default_factory=dict)

    @property
    def tokenizers(self) -> tuple[PromptTokenizer, ...]:
        """The tokenizer of each text encoder."""
        return tuple(cast(PromptTokenizer, one.tokenizer) for one in self.text.encoders)

    @property
    def clips(self) -> tuple[TextEncoder, ...]:
        """Those of its text encoders that are CLIP's, which LoRAs and embeddings may change."""
        return tuple(one for one in self.text.encoders if isinstance(one, TextEncoder))


@dataclass(frozen=True)
class SecondStage:
    """A refiner, and what a picture's record says of it."""

    record: Refiner
    model: Model


def device_of(model: Model) -> torch.device:
    """The device that computes; with offloading the weights may wait elsewhere."""
    return model.memory.placement.device or next(model.network.parameters()).device


def origin(model: Model, used: dict[str, str] | None = None) -> Origin:
    """The model and the environment, with the fallbacks `used`, for the record of an image."""
    environment = {
        "txt2img": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": describe(device_of(model)),
        "dtype": precision(model),
    }
    if device_of(model).type == "cpu":
        environment["threads"] = str(torch.get_num_threads())  # sums are split among them
    return Origin(model.name, model.hash, environment | (used or {}), config_hash(model))


def config_hash(model: Model) -> str:
    """Eight hex digits of a model's configuration, and of its refiner's if it has one."""
    digits = "" if model.checkpoint is None else model.checkpoint.config_hash(model.vae.config)
    return digits if model.refiner is None else digits + config_hash(model.refiner.model)


def precision(model: Model) -> str:
    """The dtype of the networks, or of each where they differ, for records."""
    denoiser = model.family.network.component
    parts = {denoiser: model.network, "vae": model.vae, "text": model.text.encoders[0]}
    names = {p: str(next(n.parameters()).dtype).removeprefix("torch.") for p, n in parts.items()}
    if model.memory.quantized:
        names[denoiser] += f"/{model.memory.quantized}"
    if len(set(names.values())) == 1:
        return names[denoiser]
    return ",".join(f"{part}={name}" for part, name in names.items())


def has_alpha(model: Model) -> bool:
    """Whether a model's decoder says how opaque each pixel is."""
    return bool(getattr(model.vae.config, "alpha", 0))
