"""CLIP image encoders: their config and tensors in transformers' and OpenCLIP's names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.control_configs import CLIPVisionConfig, IPAdapterConfig
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import Component, Tensors, component, first_names

SUFFIX = ".safetensors"
# By the width of the states.
ARCHITECTURES = {1024: "CLIP ViT-L/14", 1280: "CLIP ViT-H/14", 1664: "CLIP ViT-bigG/14"}
# By the width of the embedding.
BY_EMBEDDING = {768: "CLIP ViT-L/14", 1024: "CLIP ViT-H/14", 1280: "CLIP ViT-bigG/14"}
STEM = "model"  # of weight files in transformers' folders
OPEN_CLIP = "visual."
EMBEDDING = "vision_model.embeddings.class_embedding"
# Heads by the width, which no tensor tells; others have heads of 64 features.
HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
OPENAI_WIDTH = 1024  # ViT-L/14, whose published weights are OpenAI's
_LEFTOVERS: key_maps.Table = {"vision_model.embeddings.position_ids": None}


@dataclass(frozen=True)
class EncoderFile:
    """An image encoder that was opened: its config and tensors."""

    path: Path
    config: CLIPVisionConfig
    component: Component

    def fits(self, adapter: IPAdapterConfig) -> bool:
        """Whether it gives what an IP-Adapter reads."""
        own = self.config.width if adapter.reads_states else self.config.projection
        return own == adapter.features

    @property
    def name(self) -> str:
        """Its name in records; files called "model" have their architecture's."""
        name = self.path.name.removesuffix(SUFFIX)
        architecture = ARCHITECTURES.get(self.config.width, "image encoder")
        return architecture if name in (STEM, "image_encoder") else name


def needed(adapter: IPAdapterConfig) -> str:
    """What an IP-Adapter reads, and by which image encoder that usually is made."""
    by_width = ARCHITECTURES if adapter.reads_states else BY_EMBEDDING
    usual = by_width.get(adapter.features, "of an unusual CLIP")
    what = "states" if adapter.reads_states else "an embedding"
    return f"{what} {adapter.features} wide ({usual})"


def open_clip_vision(path: Path) -> EncoderFile:
    """Open an image encoder's file or folder, without reading weights.

    BadFile, UnknownLayout, MissingWeights.
    """
    return EncoderFile(path, *_open(path))


def _open(path: Path) -> tuple[CLIPVisionConfig, Component]:
    if path.is_file():
        beside = path.parent / "config.json"
        said = files.read_json(beside) if path.stem == STEM and beside.is_file() else {}
        return clip_vision_in(safetensors_file.header(path).tensors, path.name, said)
    inner = path / "image_encoder" if (path / "image_encoder").is_dir() else path
    if not (inner / "config.json").is_file():
        raise UnknownLayout(f"{shown(path.name)} is no folder of an image encoder: no config.json")
    header = safetensors_file.component(inner, STEM)
    return clip_vision_in(header.tensors, path.name, files.read_json(inner / "config.json"))


def clip_vision_in(
    tensors: Tensors, name: str, declared: Config | None = None
) -> tuple[CLIPVisionConfig, Component]:
    """The config of an image encoder's tensors and these under transformers' names.

    A whole CLIP's text encoder is left out. UnknownLayout, MissingWeights.
    """
    if any(one.startswith(f"{OPEN_CLIP}transformer.") for one in tensors):
        inside = key_maps.split_qkv(
            {one: ref for one, ref in tensors.items() if one.startswith(OPEN_CLIP)}
        )
        if (projection := inside.get("visual.proj")) is not None and len(projection.shape) == 2:
            inside["visual.proj"] = projection.transpose()
        layers = {one.split(".")[3] for one in inside if one.startswith("visual.transformer.res")}
        part = component(inside, from_open_clip(len(layers)), "")
    else:
        prefix = next((n.removesuffix(EMBEDDING) for n in tensors if n.endswith(EMBEDDING)), None)
        if prefix is None:
            some = first_names(list(tensors))
            raise UnknownLayout(f"{shown(name)} is no CLIP image encoder: it contains {some}")
        prefixes = tuple(prefix + start for start in ("vision_model.", "visual_projection."))
        inside = {
            n.removeprefix(prefix): ref for n, ref in tensors.items() if n.startswith(prefixes)
        }
        part = component(inside, _LEFTOVERS, prefix)
    config = _config({one: ref.shape for one, ref in part.tensors.items()}, name)
    return _as_said(config, declared or {}), part


def from_open_clip(layers: int) -> key_maps.Table:
    """OpenCLIP's names of an image encoder (q, k and v already split) → transformers'."""
    model = "vision_model"
    table: key_maps.Table = {
        "visual.class_embedding": f"{model}.embeddings.class_embedding",
        "visual.positional_embedding": f"{model}.embeddings.position_embedding.weight",
        "visual.conv1": f"{model}.embeddings.patch_embedding",
        "visual.ln_pre": f"{model}.pre_layrnorm",
        "visual.ln_post": f"{model}.post_layernorm",
        "visual.proj": "visual_projection.weight",
    }
    text = key_maps.clip_from_open_clip(layers)
    blocks = {theirs: ours for theirs, ours in text.items() if theirs.count(".") > 2}
    return table | {f"visual.{theirs}": f"{model}.{ours}" for theirs, ours in blocks.items()}


def _config(shapes: Mapping[str, tuple[int, ...]], name: str) -> CLIPVisionConfig:
    """The config that the tensors' shapes tell. MissingWeights."""
    tensors = {
        "patches": "vision_model.embeddings.patch_embedding.weight",
        "places": "vision_model.embeddings.position_embedding.weight",
        "mlp": "vision_model.encoder.layers.0.mlp.fc1.weight",
        "projection": "visual_projection.weight",
    }
    got = {part: shapes.get(tensor, ()) for part, tensor in tensors.items()}
    axes = {"patches": 4, "places": 2, "mlp": 2, "projection": 2}
    for part, shape in got.items():
        if len(shape) != axes[part] or not all(shape):
            raise MissingWeights(
                f"{shown(name)} is no whole CLIP image encoder: {tensors[part]} is missing or of a "
                "wrong shape"
            )
    width, _, patch, _ = got["patches"]
    layers = {n.split(".")[3] for n in shapes if n.startswith("vision_model.encoder.layers.")}
    return CLIPVisionConfig(
        width,
        len(layers),
        HEADS.get(width, max(width // 64, 1)),
        got["mlp"][0],
        patch,
        patch * isqrt(got["places"][0] - 1),
        got["projection"][0],
        "quick_gelu" if width == OPENAI_WIDTH else "gelu",
    )


def _as_said(config: CLIPVisionConfig, said: Config) -> CLIPVisionConfig:
    """The config with what transformers' config.json says that no tensor tells."""
    own = said.get("vision_config", said)
    own = own if isinstance(own, dict) else {}
    heads, act = own.get("num_attention_heads"), own.get("hidden_act")
    if isinstance(heads, int) and heads > 0 and not config.width % heads:
        config = replace(config, heads=heads)
    return replace(config, act=act) if act in ("gelu", "quick_gelu") else config
