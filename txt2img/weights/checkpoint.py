"""Open a checkpoint, a file or a folder: its family, tensors and tokenizers, without torch.

Only headers and configs are read, so `txt2img info` and --dry-run take a moment.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from txt2img.errors import BadFile, BadRequest, MissingWeights, ModelNotFound, UnknownLayout
from txt2img.models.configs import TinyConfig, VAEConfig
from txt2img.models.tokenizer import PromptTokenizer
from txt2img.request.resolve import NO_OVERRIDES, ComponentOverrides
from txt2img.request.taught_words import TaughtWords, read_taught_words
from txt2img.system import files
from txt2img.system.device_names import TORCHAO
from txt2img.system.text import shown
from txt2img.weights import tokenizer_files
from txt2img.weights.distilled import from_name
from txt2img.weights.families import Family
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config
from txt2img.weights.formats.safetensors_file import Header
from txt2img.weights.layouts import detect
from txt2img.weights.layouts.components import (
    STEM,
    Component,
    folder_components,
    original_components,
    vae_header,
)
from txt2img.weights.layouts.diffusers_config import TEXT_ENCODERS, from_configs
from txt2img.weights.layouts.overrides import open_text_encoders, open_unet
from txt2img.weights.layouts.vae import open_vae
from txt2img.weights.registry import find
from txt2img.weights.registry.hashes import model_hash

DEFAULT = Path(__file__).with_name("default")
NETWORKS = {"unet": STEM, "vae": STEM}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
PIPELINES = (
    *(
        f"StableDiffusion{kind}Pipeline"
        for size in ("", "XL")
        for kind in (size, f"{size}Img2Img", f"{size}Inpaint", f"{size}InstructPix2Pix")
    ),
    "LatentConsistencyModelPipeline",
)
Texts = Sequence[str]  # paths of text encoders in place of a model's own
TEXT_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection", None)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a model's files, of which no tensor is read yet."""

    name: str
    layout: str  # "diffusers" or "original"
    family: Family
    components: dict[str, Component]  # by diffusers' names: unet, vae, text_encoder, …
    tokenizers: Mapping[str, PromptTokenizer]  # by text encoder's component
    weights: tuple[Path, ...]
    taught_words: TaughtWords | None = None  # if its folder says which it was taught
    missing: tuple[str, ...] = ()  # text encoders that drawing needs, each with what to do

    @property
    def quantized(self) -> str:
        """Types, bits and bytes of the networks that are quantised in blocks; empty for others."""
        return ", ".join(
            f"{name}: {text}"
            for name, part in self.components.items()
            if (text := safetensors_file.quantized(part.tensors.values()))
        )

    def config_hash(self, vae: VAEConfig | TinyConfig | None = None) -> str:
        """Eight hex digits of all that configs and tokenizers decide of a picture's pixels.

        `vae` is the config of a VAE in place of its own. The defaults of a request are left out,
        since a picture records its own values. A value that is the usual one adds nothing, so that
        a config can get another setting without another hash.
        """
        family = self.family
        values = {
            "unet": _unusual(family.network),
            "vae": _unusual(vae or family.vae),
            "text_encoders": [_unusual(text) for text in family.texts],
            "noise": [_unusual(family.process), family.prediction],
            "zero_empty_negative": family.zero_empty_negative,
            "tokenizers": [one.fingerprint for one in self.tokenizers.values()],
        }
        return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Summary:
    """The facts of a model that `txt2img info` shows."""

    name: str
    hash: str
    config_hash: str
    layout: str
    family: Family
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int
    size: int  # bytes of weights
    vae: bool  # whether it has one
    quantized: str = ""  # as Checkpoint.quantized


def summary(name_or_path: str, prediction: str | None = None, hashed: bool = True) -> Summary:
    """Summarise a model from its headers, with its hash if `hashed`; raises as `load` does."""
    checkpoint = open_checkpoint(name_or_path, prediction)
    refs = [ref for part in checkpoint.components.values() for ref in part.tensors.values()]
    return Summary(
        name=checkpoint.name,
        hash=model_hash(checkpoint.weights) if hashed else "",
        config_hash=checkpoint.config_hash() if hashed else "",
        layout=checkpoint.layout,
        family=checkpoint.family,
        dtypes=tuple(sorted({ref.dtype for ref in refs})),
        tensors=len(refs),
        parameters=sum(math.prod(ref.shape) for ref in refs),
        size=sum(ref.nbytes for ref in refs),
        vae="vae" in checkpoint.components,
        quantized=checkpoint.quantized,
    )


def weight_files(path: Path) -> tuple[Path, ...]:
    """The files that hold a model's weights; a single file is its own. Raises as `load` does."""
    single = path.is_file() and not path.name.endswith(".index.json")
    return (path,) if single else open_checkpoint(str(path)).weights


def open_checkpoint(
    name_or_path: str,
    prediction: str | None = None,
    overrides: ComponentOverrides = NO_OVERRIDES,
) -> Checkpoint:
    """Open a model by name or path, reading headers and configs only. Raises as `load` does."""
    if prediction not in (None, "eps", "v"):
        raise BadRequest(f"no prediction type {shown(prediction)}; choose from eps, v")
    path = find_model(name_or_path)
    vae, texts = find.named_parts(name_or_path)
    overrides = replace(overrides, texts=overrides.texts or texts)
    checkpoint = _open(path, prediction, overrides)
    if vae or texts:  # only by this name are the files found together again
        checkpoint = replace(checkpoint, name=name_or_path)
    return _with_vae(checkpoint, vae) if vae else checkpoint


def _open(path: Path, prediction: str | None, overrides: ComponentOverrides) -> Checkpoint:
    """The checkpoint at a path, with other components."""
    texts = overrides.texts
    try:
        checkpoint = (
            _open_folder(path, texts) if path.is_dir() else _open_file(path, prediction, texts)
        )
    except OSError as error:  # of a folder that cannot be searched
        raise BadFile(*files.cannot_read([error])) from error
    family = checkpoint.family
    if prediction is not None and family.process.kind == "diffusion":
        checkpoint = replace(checkpoint, family=replace(family, prediction=prediction))
    is_unet = family.network.component == "unet"
    if overrides == NO_OVERRIDES or (overrides.unet is None and not is_unet):
        return checkpoint
    return _with_overrides(checkpoint, overrides, prediction)


def check_complete(checkpoint: Checkpoint, vae_path: str | None) -> None:
    """Raise MissingWeights if a text encoder is missing, or the VAE and there is no `vae_path`."""
    family, missing = checkpoint.family, list(checkpoint.missing)
    if vae_path is None and "vae" not in checkpoint.components:
        name = f", such as {family.vae_file}" if family.vae_file else ""
        missing.append(
            f"{shown(checkpoint.name)} contains no VAE, which turns latents into pictures; "
            f"give one for {family.name} with --vae{name}"
        )
    if missing:
        raise MissingWeights("; ".join(missing))


def check_quantize(checkpoint: Checkpoint, kind: str | None) -> None:
    """Raise BadRequest for --quantize with a network that is quantised already, or no torchao."""
    if kind is None:
        return
    network = checkpoint.components[checkpoint.family.network.component].tensors.values()
    if given := safetensors_file.quantized(network):
        raise BadRequest(
            f"--quantize {kind}: this model is quantised already ({given}); leave the option out, "
            "or give a wider file"
        )
    if find_spec("torchao") is None:
        raise BadRequest(f"--quantize {kind} {TORCHAO}")


def _with_vae(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The checkpoint with the VAE at a path. Raises as `open_vae`, BadRequest for a TAESD."""
    other = open_vae(name, checkpoint.family.vae)
    if not isinstance(other.config, VAEConfig):
        raise BadRequest(f"{shown(other.record.name)} is a TAESD: give it with --vae instead")
    components = checkpoint.components | {"vae": other.component}
    paths = [ref.path for ref in other.component.tensors.values()]
    return replace(
        checkpoint,
        family=replace(checkpoint.family, vae=other.config),
        components=components,
        weights=tuple(dict.fromkeys([*checkpoint.weights, *paths])),
    )


def _with_overrides(
    checkpoint: Checkpoint, overrides: ComponentOverrides, prediction: str | None
) -> Checkpoint:
    """The checkpoint with another network or other text encoders."""
    name, family, components = checkpoint.name, checkpoint.family, dict(checkpoint.components)
    texts = overrides.texts
    if family.network.component == "transformer":
        from txt2img.weights.layouts.transformers import open_network

        texts = ()  # they were opened with it
        if overrides.unet is not None:
            name, family, components["transformer"] = open_network(overrides.unet, family)
    elif overrides.unet is not None:
        unet = open_unet(overrides.unet, family, prediction)
        name, family, components["unet"] = unet.name, unet.family, unet.component
    components |= open_text_encoders(texts, family)
    paths = [ref.path for part in components.values() for ref in part.tensors.values()]
    return replace(
        checkpoint,
        name=name,
        family=family,
        components=components,
        weights=tuple(dict.fromkeys(paths)),
        taught_words=None,
    )


def find_model(name_or_path: str) -> Path:
    """The file or folder of a model. Raises ModelNotFound, BadRequest."""
    if name_or_path == "default":
        if not (DEFAULT / "unet").is_dir():
            raise ModelNotFound("the default model is not in this installation; install it again")
        return DEFAULT
    return find.find(name_or_path)


def _open_transformer(path: Path, header: Header | None, which: str, texts: Texts) -> Checkpoint:
    """A diffusion transformer in a folder or a file, with the text encoders in `texts`."""
    from txt2img.weights.layouts import transformers

    if header is None:
        name = find.model_name(path)
        parts = transformers.open_folder(path, name.lower(), texts)
    else:
        name = safetensors_file.stem(path)
        parts = transformers.open_file(header, which, name.lower(), texts)
    refs = [ref for part in parts.components.values() for ref in part.tensors.values()]
    return Checkpoint(
        name=name,
        layout="diffusers" if header is None else "original",
        family=parts.family,
        components=parts.components,
        tokenizers=parts.tokenizers,
        weights=tuple(dict.fromkeys(ref.path for ref in refs)),
        missing=parts.missing,
    )


def _header(path: Path) -> Header:
    """The header of a single file, or of all that an index names."""
    index = path.name.endswith(".index.json")
    return safetensors_file.sharded(path) if index else safetensors_file.header(path)


def _open_file(path: Path, prediction: str | None, texts: Texts) -> Checkpoint:
    """A single file in the original layout, or the index of a sharded one."""
    header = _header(path)
    if which := detect.match(header.tensors).transformer:
        return _open_transformer(path, header, which, texts)
    family = detect.detect(header, prediction)
    name = safetensors_file.stem(path)
    title = header.metadata.get("modelspec.title", "")
    # A U-Net with an embedding of the guidance scale is an LCM whatever its name.
    hints = "" if family.network.embeds_cfg else f"{name} {title}"
    encoders = zip(TEXT_ENCODERS, family.clip_texts, family.pad_tokens, strict=False)
    return Checkpoint(
        name=name,
        layout="original",
        family=replace(family, defaults=from_name(family.defaults, hints)),
        components=original_components(header.tensors, family),
        tokenizers={
            component: tokenizer_files.clip_tokenizer(text.length, pad)
            for component, text, pad in encoders
        },
        weights=header.paths,
    )


def _open_folder(folder: Path, overrides: Texts) -> Checkpoint:
    """A diffusers folder: configs decide the shapes, and the tensors must agree."""
    if (folder / "transformer").is_dir():
        return _open_transformer(folder, None, "", overrides)
    _check_pipeline(folder)
    texts = [name for name in TEXT_ENCODERS if (folder / name).is_dir()] or [TEXT_ENCODERS[0]]
    names = [*NETWORKS, *texts]
    configs: dict[str, Config] = {name: _config(folder / name / "config.json") for name in names}
    configs["scheduler"] = _config(folder / "scheduler" / "scheduler_config.json")
    for optional in ("txt2img", "model_index"):
        if (folder / f"{optional}.json").is_file():
            configs[optional] = files.read_json(folder / f"{optional}.json")
    title = "default" if folder == DEFAULT else find.model_name(folder)
    family = from_configs(configs, title)
    headers = {
        name: safetensors_file.component(folder / name, NETWORKS.get(name, "model"))
        for name in names
        if name != "vae"
    }
    headers["vae"], alpha = vae_header(folder / "vae")
    family = replace(family, vae=replace(family.vae, alpha=alpha))
    tokenizers = {
        name: tokenizer_files.read_tokenizer(folder / TOKENIZERS[name], text.length, text.vocab)
        for name, text in zip(texts, family.texts, strict=True)
    }
    return Checkpoint(
        name=title,
        layout="diffusers",
        family=replace(family, pad_tokens=tuple(one.pad for one in tokenizers.values())),
        components=folder_components({n: one.tensors for n, one in headers.items()}, family),
        tokenizers=tokenizers,
        weights=tuple(path for header in headers.values() for path in header.paths),
        taught_words=read_taught_words(folder),
    )


def _unusual(config: object) -> dict[str, object]:
    """The values of a config, a dataclass, that are not its class's defaults."""
    assert is_dataclass(config)
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    usual = {field.name: field.default for field in fields(config) if field.default is not MISSING}
    return {name: value for name, value in values.items() if usual.get(name, MISSING) != value}


def _check_pipeline(folder: Path) -> None:
    """Raise UnknownLayout for pipelines of other kinds; model_index.json may be missing."""
    if not (folder / "unet").is_dir():
        path = folder / "config.json"
        config = files.read_json(path) if path.is_file() else {}
        listed = config.get("architectures")
        names = [config.get("_class_name"), *(listed if isinstance(listed, list) else [])]
        if single := next((one for one in names if isinstance(one, str)), ""):
            raise UnknownLayout(
                f"{shown(folder.name)} is the folder of a single network, a {shown(single)}; that "
                "of a whole model is needed here"
            )
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
    for name in TEXT_ENCODERS:
        text = rows.get(name, [None])
        if not isinstance(text, list) or text[-1:] not in [[known] for known in TEXT_CLASSES]:
            raise UnknownLayout(f"{name} {shown(text)} is not supported; only {TEXT_CLASSES[0]}")


def _config(path: Path) -> Config:
    if not path.is_file():
        raise MissingWeights(
            f"{path.parent.name}/{path.name} is missing; download the folder again"
        )
    return files.read_json(path)
