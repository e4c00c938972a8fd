"""A name or a path → a Model: planned from headers, then read strictly, onto the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from txt2img import disk, offload
from txt2img.device import Device
from txt2img.errors import BadRequest, MissingWeights, ModelNotFound, UnknownLayout
from txt2img.escape import shown
from txt2img.memory import CPU, Memory
from txt2img.models.graphed import Graphed, recorded_on_card
from txt2img.models.lean import slim
from txt2img.models.quantized import quantize
from txt2img.models.text import TextEncoder, TextEncoders, Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.offload import Placement
from txt2img.weights import detect, files, places, vocabulary
from txt2img.weights.configs import TEXTS, from_configs
from txt2img.weights.families import Family
from txt2img.weights.fast import by_name
from txt2img.weights.hashes import compiler_cache, model_hash
from txt2img.weights.other_vae import open_vae
from txt2img.weights.parts import (
    Part,
    bare,
    folder_parts,
    listed,
    original_parts,
)
from txt2img.weights.reader import reader
from txt2img.weights.values import Config
from txt2img.weights.wear import Wardrobe

Network = TypeVar("Network", bound=nn.Module)

DEFAULT = Path(__file__).with_name("default")
NETWORKS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PIPELINES = (
    *(
        f"StableDiffusion{kind}Pipeline"
        for size in ("", "XL")
        for kind in (size, f"{size}Img2Img", f"{size}Inpaint", f"{size}InstructPix2Pix")
    ),
    "LatentConsistencyModelPipeline",
)
NOT_COMPILED = (
    "--compile is for models that lie on a CUDA card as a whole: this one is not compiled"
)
TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", None)


@dataclass
class Model:
    """A family with its weights: all that turns a request into pictures."""

    name: str  # what users see; never a path
    hash: str  # ten hex digits that tell its weights from others'
    family: Family
    network: UNet
    vae: VAE
    text: TextEncoder | TextEncoders
    wardrobe: Wardrobe = field(default_factory=Wardrobe)
    memory: Memory = field(default_factory=Memory)
    graphed: Graphed | None = None  # the network as a card draws with it, sooner


@dataclass(frozen=True)
class Plan:
    """What is to be loaded from where; made from headers and configs, no tensor read."""

    name: str
    layout: str  # "diffusers" or "original"
    family: Family
    parts: dict[str, Part]  # by component
    tokenizers: dict[str, Tokenizer]  # by text encoder's component
    weights: tuple[Path, ...]


@dataclass(frozen=True)
class Summary:
    """What `txt2img info` says of a weight file or folder."""

    name: str
    hash: str
    layout: str
    family: Family
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int
    size: int  # bytes of weights


def load(
    name_or_path: str, device: Device, prediction: str | None = None, vae_path: str | None = None
) -> Model:
    """The model, its weights checked and on the device, with the VAE at `vae_path` if given.

    `prediction`, "eps" or "v", overrules what the files say. Raises ModelNotFound, UnknownLayout,
    MissingWeights, BadFile, each naming what is wrong.
    """
    plan = _plan(name_or_path, prediction)
    other = None if vae_path is None else open_vae(vae_path, plan.family.vae)
    if other is not None:
        parts = plan.parts | {"vae": Part(other.tensors, other.theirs)}
        plan = replace(plan, family=replace(plan.family, vae=other.config), parts=parts)
    family = plan.family
    placement = placed(plan, device)
    filled = partial(_filled, plan=plan, device=device, placement=placement)
    network = filled(lambda: UNet(family.network), "unet")
    vae = filled(lambda: VAE(family.vae), "vae")
    encoders = [
        filled(partial(TextEncoder, config, plan.tokenizers[component]), component)
        for config, component in zip(family.texts, plan.tokenizers, strict=True)
    ]
    text = TextEncoders(encoders) if encoders[1:] else encoders[0]
    wardrobe = Wardrobe(vae=None if other is None else other.record)
    memory = Memory(low=device.low, quantized=device.quantize, placement=placement)
    if device.quantize:
        quantize(network, device.quantize)
    hashed = model_hash(plan.weights)
    model = Model(plan.name, hashed, family, network, vae, text, wardrobe, memory)
    return quickened(model, device)


def device_of(model: Model) -> torch.device:
    """Where a model computes; its weights may wait elsewhere."""
    return model.memory.placement.device or next(model.network.parameters()).device


def quickened(model: Model, device: Device) -> Model:
    """The same model; on a card as that draws soonest: channels last, recorded for each shape."""
    if device.torch_device.type != "cuda":
        return model
    for network in (model.network, model.vae):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if model.memory.placement.mode == "none":
        model.graphed = Graphed(
            model.network,
            lambda line: model.memory.tell(line),
            recorded_on_card,
            compiler_cache() if device.compile else "",
        )
    return model


def placed(plan: Plan, device: Device) -> Placement:
    """How a model's parts get to the device, with lines that say so. BadRequest."""
    sizes = {
        component: device.dtype_of(component).itemsize
        * sum(torch.Size(stored.shape).numel() for stored in part.tensors.values())
        for component, part in plan.parts.items()
    }
    where = device.torch_device
    free = offload.free_memory(where) if device.offload == "auto" else None
    mode, line = offload.chosen(device.offload, where, sizes, free)
    notes = [line] if line else []
    if device.compile and (where.type != "cuda" or mode != "none"):
        notes.append(NOT_COMPILED)
    return Placement(where, mode, tuple(notes))


def summary(name_or_path: str, prediction: str | None = None, hashed: bool = True) -> Summary:
    """What a model is, read from its headers, and its hash if wanted; raises as `load` does."""
    plan = _plan(name_or_path, prediction)
    stored = [tensor for part in plan.parts.values() for tensor in part.tensors.values()]
    return Summary(
        name=plan.name,
        hash=model_hash(plan.weights) if hashed else "",
        layout=plan.layout,
        family=plan.family,
        dtypes=tuple(sorted({tensor.dtype for tensor in stored})),
        tensors=len(stored),
        parameters=sum(torch.Size(tensor.shape).numel() for tensor in stored),
        size=sum(tensor.size for tensor in stored),
    )


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights; any single file is its own. Raises as `load` does."""
    single = path.is_file() and not path.name.endswith(".index.json")
    return (path,) if single else _plan(str(path), None).weights


def _plan(name_or_path: str, prediction: str | None) -> Plan:
    if prediction not in (None, "eps", "v"):
        raise BadRequest(f"no prediction type {shown(prediction)}; choose from eps, v")
    path = find(name_or_path)
    plan = _plan_folder(path) if path.is_dir() else _plan_file(path, prediction)
    if prediction is not None and plan.family.process.kind == "diffusion":
        plan = replace(plan, family=replace(plan.family, prediction=prediction))
    return plan


def find(name_or_path: str) -> Path:
    """Where a model is on this machine. Raises ModelNotFound, BadRequest."""
    if name_or_path == "default":
        if not (DEFAULT / "unet").is_dir():
            raise ModelNotFound("the default model is not in this installation; install it again")
        return DEFAULT
    return places.find(name_or_path)


def _plan_file(path: Path, prediction: str | None) -> Plan:
    """A single file in the original layout, or the index of one that is sharded."""
    index = path.name.endswith(".index.json")
    header = files.sharded(path) if index else files.header(path)
    family = detect.detect(header, prediction)
    name = path.name.split(".safetensors")[0]
    title = header.metadata.get("modelspec.title", "")
    # A network that is told the guidance scale is known as an LCM whatever its name.
    told = "" if family.network.scale_width else f"{name} {title}"
    return Plan(
        name=name,
        layout="original",
        family=replace(family, defaults=by_name(family.defaults, told)),
        parts=original_parts(header.tensors, family),
        tokenizers={
            component: vocabulary.shipped(text.length, pad)
            for component, text, pad in zip(TEXTS, family.texts, family.pads, strict=False)
        },
        weights=header.paths,
    )


def _plan_folder(folder: Path) -> Plan:
    """A diffusers folder: configs decide the shapes, and the tensors must agree."""
    _check_pipeline(folder)
    texts = [name for name in TEXTS if (folder / name).is_dir()] or [TEXTS[0]]
    components = [*NETWORKS, *texts]
    configs: dict[str, Config] = {c: _config(folder / c / "config.json") for c in components}
    configs["scheduler"] = _config(folder / "scheduler" / "scheduler_config.json")
    for more in ("txt2img", "model_index"):
        if (folder / f"{more}.json").is_file():
            configs[more] = disk.read_json(folder / f"{more}.json")
    name = "default" if folder == DEFAULT else folder.resolve().name
    family = from_configs(configs, name)
    headers = {c: files.component(folder / c, NETWORKS.get(c, "model")) for c in components}
    tokenizers = {
        c: vocabulary.tokenizer(folder / TOKENIZERS[c], text.length, text.vocab)
        for c, text in zip(texts, family.texts, strict=True)
    }
    pads = tuple(tokenizer.pad for tokenizer in tokenizers.values())
    weights = tuple(path for header in headers.values() for path in header.paths)
    parts = folder_parts({c: header.tensors for c, header in headers.items()}, family)
    return Plan(name, "diffusers", replace(family, pads=pads), parts, tokenizers, weights)


def _check_pipeline(folder: Path) -> None:
    """Refuse folders of other kinds by name; one without model_index.json is given a chance."""
    if not (folder / "unet").is_dir():
        raise UnknownLayout(
            f"{shown(folder.name)} is no diffusers folder of a Stable Diffusion model: "
            "it has no unet/"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        return
    rows = disk.read_json(index)
    kind = rows.get("_class_name")
    if kind not in PIPELINES:
        raise UnknownLayout(f"{shown(kind)} is not supported; supported: {', '.join(PIPELINES)}")
    for name in TEXTS:
        text = rows.get(name, [None])
        if not isinstance(text, list) or text[-1:] not in [[known] for known in TEXT_CLASSES]:
            raise UnknownLayout(f"{name} {shown(text)} is not supported; only {TEXT_CLASSES[0]}")


def _config(path: Path) -> Config:
    if not path.is_file():
        raise MissingWeights(
            f"{path.parent.name}/{path.name} is missing; download the folder again"
        )
    return disk.read_json(path)


def _filled(
    build: Callable[[], Network], component: str, plan: Plan, device: Device, placement: Placement
) -> Network:
    """A network with its weights: built without memory, compared with the headers, then read.

    Where main memory is short and computes, they are read for each use only.
    """
    part, dtype = plan.parts[component], device.dtype_of(component)
    with torch.device("meta"):
        network = build()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _check(component, part, {bare(name): shape for name, shape in shapes.items()})
    slimmed = slim(network) if device.low else set()
    home = device.torch_device if placement.mode == "none" else CPU
    read = reader(part, home, dtype, slimmed)
    if device.low and device.torch_device.type == "cpu":
        network.to(dtype)
        placement.shelves[network] = read
    else:
        network.load_state_dict(read(shapes), strict=True, assign=True)
    _number_positions(network, home)
    return network.eval().requires_grad_(False)


def _check(component: str, part: Part, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor must be there, in its shape, and no other. Raises MissingWeights."""
    missing = [part.theirs(name) for name in wanted if name not in part.tensors]
    extra = [part.theirs(name) for name in part.tensors if name not in wanted]
    if missing:
        also = f"; unknown are {listed(extra)}" if extra else ""
        raise MissingWeights(f"{component}: {listed(missing)} missing{also}; download it again")
    if extra:
        raise MissingWeights(f"{component}: {listed(extra)} unknown to this architecture")
    for name, shape in wanted.items():
        if (got := part.tensors[name].shape) != shape:
            what = shown(part.theirs(name), files.NAME_MAX)
            raise MissingWeights(f"{component}: {what} has the shape {got}; {shape} is needed")


def _number_positions(network: nn.Module, device: torch.device) -> None:
    """Give CLIP's position numbers their values: a buffer that no file holds."""
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            numbers = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(network.get_submodule(owner), attribute, numbers)
