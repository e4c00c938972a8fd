"""A name or a path → a Model: planned from headers, then read strictly, onto the device."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from txt2img import disk
from txt2img.device import Device
from txt2img.errors import BadRequest, MissingWeights, ModelNotFound, UnknownLayout
from txt2img.escape import shown
from txt2img.models.text import TextEncoder, Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.weights import detect, files, keymaps, vocabulary
from txt2img.weights.configs import Config, from_configs
from txt2img.weights.families import Family
from txt2img.weights.files import Header, Stored
from txt2img.weights.hashes import sha256
from txt2img.weights.other_vae import open_vae
from txt2img.weights.wear import Wardrobe

Network = TypeVar("Network", bound=nn.Module)

DEFAULT = Path(__file__).with_name("default")
COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
# How all of a module's own names begin: CLIP's say more than files do, by transformers' version.
CLIP_STARTS = ("model.text_model.", "model.", "")
TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")


@dataclass
class Model:
    """A family with its weights: all that turns a request into pictures."""

    name: str  # what users see; never a path
    hash: str  # ten hex digits that tell its weights from others'
    family: Family
    network: UNet
    vae: VAE
    text: TextEncoder
    wardrobe: Wardrobe = field(default_factory=Wardrobe)


@dataclass(frozen=True)
class Part:
    """A network's tensors under our names, and how to say one in the file's layout."""

    tensors: dict[str, Stored]
    theirs: Callable[[str], str]


@dataclass(frozen=True)
class Plan:
    """What is to be loaded from where; made from headers and configs, no tensor read."""

    name: str
    layout: str  # "diffusers" or "original"
    family: Family
    parts: dict[str, Part]  # by component
    tokenizer: Tokenizer
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
    network = _filled(lambda: UNet(family.network), "unet", plan, device)
    vae = _filled(lambda: VAE(family.vae), "vae", plan, device)
    text = _filled(lambda: TextEncoder(family.text, plan.tokenizer), "text_encoder", plan, device)
    wardrobe = Wardrobe(vae=None if other is None else other.record)
    return Model(plan.name, _hash(plan.weights), family, network, vae, text, wardrobe)


def summary(name_or_path: str, prediction: str | None = None) -> Summary:
    """What a model is, read from its headers; raises as `load` does."""
    plan = _plan(name_or_path, prediction)
    stored = [tensor for part in plan.parts.values() for tensor in part.tensors.values()]
    return Summary(
        name=plan.name,
        hash=_hash(plan.weights),
        layout=plan.layout,
        family=plan.family,
        dtypes=tuple(sorted({tensor.dtype for tensor in stored})),
        tensors=len(stored),
        parameters=sum(torch.Size(tensor.shape).numel() for tensor in stored),
        size=sum(tensor.size for tensor in stored),
    )


def _plan(name_or_path: str, prediction: str | None) -> Plan:
    if prediction not in (None, "eps", "v"):
        raise BadRequest(f"no prediction type {shown(prediction)}; choose from eps, v")
    path = _find(name_or_path)
    plan = _plan_folder(path) if path.is_dir() else _plan_file(path, prediction)
    if prediction is not None and plan.family.process.kind == "diffusion":
        plan = replace(plan, family=replace(plan.family, prediction=prediction))
    return plan


def _find(name_or_path: str) -> Path:
    """Where a model is on this machine. Raises ModelNotFound."""
    if name_or_path == "default":
        if not (DEFAULT / "unet").is_dir():
            raise ModelNotFound("the default model is not in this installation; install it again")
        return DEFAULT
    path = os.path.expanduser(name_or_path)
    if not os.path.exists(path):
        raise ModelNotFound(
            f"no model {shown(name_or_path)}: give 'default', a diffusers folder or a .safetensors "
            "file; nothing is fetched from the network, so download it first"
        )
    return Path(path)


def _plan_file(path: Path, prediction: str | None) -> Plan:
    """A single file in the original layout, or the index of one that is sharded."""
    index = path.name.endswith(".index.json")
    header = files.sharded(path) if index else files.header(path)
    family = detect.detect(header, prediction)
    return Plan(
        name=path.name.split(".safetensors")[0],
        layout="original",
        family=family,
        parts=_original_parts(header.tensors, family),
        tokenizer=vocabulary.shipped(family.text.length, family.pad),
        weights=_files_of(header),
    )


def _original_parts(tensors: Mapping[str, Stored], family: Family) -> dict[str, Part]:
    """The networks' tensors in an original-layout file. Raises MissingWeights for foreign ones."""
    table = keymaps.unet_from_ldm(family.network)
    parts = {"unet": _part(tensors, keymaps.UNET, table)}
    vae = _part(tensors, keymaps.VAE, keymaps.vae_from_ldm(family.vae))
    parts["vae"] = replace(vae, tensors=keymaps.flattened(vae.tensors))
    clip, open_clip = f"{keymaps.CLIP}.", f"{keymaps.OPEN_CLIP}."
    if any(name.startswith(open_clip) for name in tensors):
        whole = keymaps.unfused(tensors)
        table = keymaps.clip_from_open_clip(family.text.layers)
        parts["text_encoder"] = _part(whole, keymaps.OPEN_CLIP, table)
    else:
        parts["text_encoder"] = _part(tensors, keymaps.CLIP, keymaps.clip_from_published())
    known = (f"{keymaps.UNET}.", f"{keymaps.VAE}.", clip, open_clip)
    foreign = [
        name
        for name in tensors
        if not name.startswith(known) and keymaps.rename(name, keymaps.LEFTOVERS) is not None
    ]
    if foreign:
        raise MissingWeights(f"{_list(foreign)} of this file belong to no part of {family.name}")
    return parts


def _part(tensors: Mapping[str, Stored], prefix: str, table: keymaps.Table) -> Part:
    kept = {n: s for n, s in tensors.items() if keymaps.rename(n, keymaps.LEFTOVERS) is not None}
    back = keymaps.backwards(table)
    return Part(
        keymaps.renamed(keymaps.below(kept, prefix), table),
        lambda name: f"{prefix}.{keymaps.rename(name, back)}",
    )


def _plan_folder(folder: Path) -> Plan:
    """A diffusers folder: configs decide the shapes, and the tensors must agree."""
    _check_pipeline(folder)
    configs: dict[str, Config] = {c: _config(folder / c / "config.json") for c in COMPONENTS}
    configs["scheduler"] = _config(folder / "scheduler" / "scheduler_config.json")
    if (folder / "txt2img.json").is_file():
        configs["txt2img"] = disk.read_json(folder / "txt2img.json")
    family = from_configs(configs)
    headers = {
        component: _component(folder / component, stem) for component, stem in COMPONENTS.items()
    }
    tables: dict[str, keymaps.Table] = {
        "unet": {},
        "vae": keymaps.vae_from_old_diffusers(),
        "text_encoder": keymaps.clip_from_published(),
    }
    parts = {
        component: Part(keymaps.renamed(header.tensors, tables[component]), lambda name: name)
        for component, header in headers.items()
    }
    parts["vae"] = replace(parts["vae"], tensors=keymaps.flattened(parts["vae"].tensors))
    tokenizer = vocabulary.tokenizer(folder / "tokenizer", family.text.length, family.text.vocab)
    pad = next(word for word, index in tokenizer.vocab.items() if index == tokenizer.pad_id)
    weights = tuple(path for header in headers.values() for path in _files_of(header))
    name = "default" if folder == DEFAULT else folder.resolve().name
    return Plan(name, "diffusers", replace(family, pad=pad), parts, tokenizer, weights)


def _check_pipeline(folder: Path) -> None:
    """Refuse folders of other kinds by name; one without model_index.json is given a chance."""
    if not (folder / "unet").is_dir():
        raise UnknownLayout(
            f"{shown(folder.name)} is no diffusers folder of an SD 1 or SD 2 model: it has no unet/"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        return
    rows = disk.read_json(index)
    kind = rows.get("_class_name")
    if kind not in PIPELINES:
        raise UnknownLayout(f"{shown(kind)} is not supported; supported: {', '.join(PIPELINES)}")
    text = rows.get("text_encoder")
    if not isinstance(text, list) or text[-1:] not in [[name] for name in TEXT_CLASSES]:
        raise UnknownLayout(f"text_encoder {shown(text)} is not supported; only {TEXT_CLASSES[0]}")


def _config(path: Path) -> Config:
    if not path.is_file():
        raise MissingWeights(
            f"{path.parent.name}/{path.name} is missing; download the folder again"
        )
    return disk.read_json(path)


def _component(folder: Path, stem: str) -> Header:
    """The header of one network's weights in a folder; full precision before half."""
    for variant in ("", ".fp16"):
        single, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
        if (folder / single).is_file():
            return files.header(folder / single)
        if (folder / index).is_file():
            return files.sharded(folder / index)
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in files.PICKLES)
    if pickled:
        raise UnknownLayout(f"{folder.name}/{shown(pickled[0])} is {files.PICKLE}; {files.CONVERT}")
    raise MissingWeights(f"{folder.name}/{stem}.safetensors is missing; download the folder again")


def _files_of(header: Header) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(stored.path for stored in header.tensors.values()))


def _filled(build: Callable[[], Network], component: str, plan: Plan, device: Device) -> Network:
    """A network with its weights: built without memory, compared with the headers, then read."""
    part = plan.parts[component]
    with torch.device("meta"):
        network = build()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    start = next(p for p in CLIP_STARTS if all(name.startswith(p) for name in shapes))
    wanted = {name.removeprefix(start): shape for name, shape in shapes.items()}
    _check(component, part, wanted)
    theirs = {part.theirs(name): stored for name, stored in part.tensors.items()}
    read = files.read(theirs, device.torch_device, device.dtype)
    state = {start + name: read[part.theirs(name)] for name in part.tensors}
    network.load_state_dict(state, strict=True, assign=True)
    _number_positions(network, device.torch_device)
    return network.eval().requires_grad_(False)


def _check(component: str, part: Part, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor must be there, in its shape, and no other. Raises MissingWeights."""
    missing = [part.theirs(name) for name in wanted if name not in part.tensors]
    extra = [part.theirs(name) for name in part.tensors if name not in wanted]
    if missing:
        also = f"; unknown are {_list(extra)}" if extra else ""
        raise MissingWeights(f"{component}: {_list(missing)} missing{also}; download it again")
    if extra:
        raise MissingWeights(f"{component}: {_list(extra)} unknown to this architecture")
    for name, shape in wanted.items():
        if (got := part.tensors[name].shape) != shape:
            what = shown(part.theirs(name), files.NAME_MAX)
            raise MissingWeights(f"{component}: {what} has the shape {got}; {shape} is needed")


def _list(names: list[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name, files.NAME_MAX) for name in names[:3]) + more


def _number_positions(network: nn.Module, device: torch.device) -> None:
    """Give CLIP's position numbers their values: a buffer that no file holds."""
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            numbers = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(network.get_submodule(owner), attribute, numbers)


def _hash(weights: tuple[Path, ...]) -> str:
    """Ten digits of the file's SHA-256, as other programs write them; of several files', of all."""
    digests = [sha256(path) for path in weights]
    if len(digests) == 1:
        return digests[0][:10]
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()[:10]
