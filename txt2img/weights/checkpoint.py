"""A name or a path → a Plan: what is to be loaded from where, told by headers and configs.

Nothing here knows torch: what a model is can be said in a moment.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import BadRequest, MissingWeights, ModelNotFound, UnknownLayout
from txt2img.models.tokenizer import Tokenizer
from txt2img.request.resolve import NO_OVERRIDES, ComponentOverrides
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights import tokenizer_files
from txt2img.weights.distilled import by_name
from txt2img.weights.families import Family
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config
from txt2img.weights.layouts import detect
from txt2img.weights.layouts.components import Part, folder_parts, original_parts
from txt2img.weights.layouts.diffusers_config import TEXTS, from_configs
from txt2img.weights.layouts.overrides import open_texts, open_unet
from txt2img.weights.registry import find as places
from txt2img.weights.registry.hashes import model_hash

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
TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", None)


@dataclass(frozen=True)
class Checkpoint:
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
    vae: bool  # whether it has one


def summary(name_or_path: str, prediction: str | None = None, hashed: bool = True) -> Summary:
    """What a model is, read from its headers, and its hash if wanted; raises as `load` does."""
    plan = open_checkpoint(name_or_path, prediction)
    stored = [tensor for part in plan.parts.values() for tensor in part.tensors.values()]
    return Summary(
        name=plan.name,
        hash=model_hash(plan.weights) if hashed else "",
        layout=plan.layout,
        family=plan.family,
        dtypes=tuple(sorted({tensor.dtype for tensor in stored})),
        tensors=len(stored),
        parameters=sum(math.prod(tensor.shape) for tensor in stored),
        size=sum(tensor.nbytes for tensor in stored),
        vae="vae" in plan.parts,
    )


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights; any single file is its own. Raises as `load` does."""
    single = path.is_file() and not path.name.endswith(".index.json")
    return (path,) if single else open_checkpoint(str(path)).weights


def open_checkpoint(
    name_or_path: str, prediction: str | None = None, others: ComponentOverrides = NO_OVERRIDES
) -> Checkpoint:
    """What is to be loaded, read from headers and configs alone. Raises as `load` does."""
    if prediction not in (None, "eps", "v"):
        raise BadRequest(f"no prediction type {shown(prediction)}; choose from eps, v")
    path = find(name_or_path)
    plan = _plan_folder(path) if path.is_dir() else _plan_file(path, prediction)
    if prediction is not None and plan.family.process.kind == "diffusion":
        plan = replace(plan, family=replace(plan.family, prediction=prediction))
    return plan if others == NO_OVERRIDES else _with_others(plan, others, prediction)


def check_vae(plan: Checkpoint, other: str | None) -> None:
    """Raise MissingWeights if nothing decodes what the model draws: neither it nor the `other`."""
    if other is None and "vae" not in plan.parts:
        raise MissingWeights(
            f"{shown(plan.name)} holds no VAE, which turns latents into pictures; "
            f"give one for {plan.family.name} with --vae"
        )


def _with_others(
    plan: Checkpoint, others: ComponentOverrides, prediction: str | None
) -> Checkpoint:
    """The plan with other networks in it."""
    if others.unet is not None:
        found = open_unet(others.unet, plan.family, prediction)
        parts = plan.parts | found.parts
        plan = replace(plan, name=found.name, family=found.family, parts=parts)
    parts = plan.parts | open_texts(others.texts, plan.family)
    paths = [stored.path for part in parts.values() for stored in part.tensors.values()]
    return replace(plan, parts=parts, weights=tuple(dict.fromkeys(paths)))


def find(name_or_path: str) -> Path:
    """Where a model is on this machine. Raises ModelNotFound, BadRequest."""
    if name_or_path == "default":
        if not (DEFAULT / "unet").is_dir():
            raise ModelNotFound("the default model is not in this installation; install it again")
        return DEFAULT
    return places.find(name_or_path)


def _plan_file(path: Path, prediction: str | None) -> Checkpoint:
    """A single file in the original layout, or the index of one that is sharded."""
    index = path.name.endswith(".index.json")
    header = safetensors_file.sharded(path) if index else safetensors_file.header(path)
    family = detect.detect(header, prediction)
    name = path.name.split(".safetensors")[0]
    title = header.metadata.get("modelspec.title", "")
    # A network that is told the guidance scale is known as an LCM whatever its name.
    told = "" if family.network.scale_width else f"{name} {title}"
    return Checkpoint(
        name=name,
        layout="original",
        family=replace(family, defaults=by_name(family.defaults, told)),
        parts=original_parts(header.tensors, family),
        tokenizers={
            component: tokenizer_files.shipped(text.length, pad)
            for component, text, pad in zip(TEXTS, family.texts, family.pads, strict=False)
        },
        weights=header.paths,
    )


def _plan_folder(folder: Path) -> Checkpoint:
    """A diffusers folder: configs decide the shapes, and the tensors must agree."""
    _check_pipeline(folder)
    texts = [name for name in TEXTS if (folder / name).is_dir()] or [TEXTS[0]]
    components = [*NETWORKS, *texts]
    configs: dict[str, Config] = {c: _config(folder / c / "config.json") for c in components}
    configs["scheduler"] = _config(folder / "scheduler" / "scheduler_config.json")
    for more in ("txt2img", "model_index"):
        if (folder / f"{more}.json").is_file():
            configs[more] = files.read_json(folder / f"{more}.json")
    name = "default" if folder == DEFAULT else places.model_name(folder)
    family = from_configs(configs, name)
    headers = {
        c: safetensors_file.component(folder / c, NETWORKS.get(c, "model")) for c in components
    }
    tokenizers = {
        c: tokenizer_files.tokenizer(folder / TOKENIZERS[c], text.length, text.vocab)
        for c, text in zip(texts, family.texts, strict=True)
    }
    pads = tuple(tokenizer.pad for tokenizer in tokenizers.values())
    weights = tuple(path for header in headers.values() for path in header.paths)
    parts = folder_parts({c: header.tensors for c, header in headers.items()}, family)
    return Checkpoint(name, "diffusers", replace(family, pads=pads), parts, tokenizers, weights)


def _check_pipeline(folder: Path) -> None:
    """Refuse folders of other kinds by name; one without model_index.json is given a chance."""
    if not (folder / "unet").is_dir():
        raise UnknownLayout(
            f"{shown(folder.name or str(folder))} is no diffusers folder of a Stable Diffusion "
            "model: it has no unet/"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        return
    rows = files.read_json(index)
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
    return files.read_json(path)
