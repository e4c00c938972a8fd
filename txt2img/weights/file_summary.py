"""Facts of weight files that are no whole models, from their headers: LoRAs, VAEs and others."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.request.resolve import AdapterPaths
from txt2img.system.files import parse_json
from txt2img.system.text import shown
from txt2img.weights.adapters import file_layout
from txt2img.weights.adapters.base_model import TEXT_WIDTHS, base_model, text_widths_of
from txt2img.weights.families import Family
from txt2img.weights.file_kind import check_kind, file_of, kind_of
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import Header
from txt2img.weights.layouts import clip_vision, ip_adapter, t2i_adapter, text_key_maps
from txt2img.weights.layouts.components import text_widths
from txt2img.weights.layouts.control import check_control, details, family_of
from txt2img.weights.layouts.taesd import TRAINED_FOR, is_taesd
from txt2img.weights.layouts.vae import open_vae

TAGS_SHOWN = 8  # of a training set's
# Roles of tensors that only one method has.
METHODS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "oft_blocks": "OFT",
    "oft_r": "OFT",
    "old_oft": "OFT",
    "boft_r": "BOFT",
    "a1": "GLoRA",
    "ia3": "IA3",
    "diff": "full difference",
    "dora": "DoRA",
}
# Families by the channels of their latents.
LATENT_FAMILIES = {
    4: "Stable Diffusion 1, 2 or XL, whose VAEs are alike",
    16: "Stable Diffusion 3, FLUX.1 or Z-Image",
    32: "FLUX.2",
}


@dataclass(frozen=True)
class FileSummary:
    """What a weight file is; texts are empty and numbers 0 where nothing tells them."""

    kind: str
    path: Path
    base: str = ""  # the family it was made for
    title: str = ""
    words: tuple[str, ...] = ()  # that trigger it
    details: Mapping[str, object] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    size: int = 0  # bytes of weights
    quantized: str = ""  # types, bits and bytes, if it is quantised in blocks


def summarise(path: Path) -> FileSummary | None:
    """What a file is, or the file in the folder of a single network; None for all else. BadFile."""
    path = file_of(path)
    kind = kind_of(path) if path.is_file() else ""
    if not kind:
        return None
    header = safetensors_file.header(path)
    refs = header.tensors.values()
    details, base = _DETAILS.get(kind, _other)(path, header)
    return FileSummary(
        kind,
        path,
        base or _said_base(header.metadata),
        _title(header.metadata),
        _trigger_words(header.metadata),
        details,
        tuple(sorted({ref.dtype for ref in refs})),
        len(header.tensors),
        sum(math.prod(ref.shape) for ref in refs),
        sum(ref.nbytes for ref in refs),
        safetensors_file.quantized(refs),
    )


def check_library(library: AdapterPaths, family: Family, model: str) -> None:
    """Raise what loading would for files given singly that do not fit a model, by their headers.

    UnknownLayout, MissingWeights, BadFile.
    """
    for path in library.loras.values():
        check_lora(path, family, model)
    for path in library.embeddings.values():
        check_embedding(path, family)
    if library.vae is not None:
        check_vae(library.vae, family)
    for path in library.ip_adapters.values():
        check_ip_adapter(path, family)
    if library.controls:
        for path in library.controls.values():
            check_control(path, family, model)


def check_ip_adapter(path: Path, family: Family) -> ip_adapter.IPAdapterFile:
    """Open an IP-Adapter. UnknownLayout, BadRequest if it does not fit a family; BadFile."""
    file = ip_adapter.open_ip_adapter(path)
    ip_adapter.check_fits(file.config, family.network, path.name, family.name)
    return file


def check_lora(path: Path, family: Family, model: str) -> None:
    """Raise UnknownLayout for a file that is no LoRA, or one for another family, by its header."""
    header = safetensors_file.header(path)
    check_kind(path, "LoRA")
    made_for, widths = base_model(header.tensors), set(text_widths_of(header.tensors))
    known = made_for in ("", *TEXT_WIDTHS.values())
    other_network = not known and family.network.component == "unet"
    if other_network or (widths and family.network.cross_dim not in widths):
        other = made_for or "another model"
        advice = "give --model" if model == "default" else f"the model is {family.name}"
        raise UnknownLayout(f"{shown(path.name)} is made for {other}; {advice}")


def check_embedding(path: Path, family: Family, word: str = "") -> None:
    """Raise UnknownLayout or MissingWeights for an embedding that does not fit. BadFile."""
    file_layout.vectors_of(path, family.clip_texts, word)


def check_vae(name: str, family: Family) -> None:
    """Raise MissingWeights or UnknownLayout for a VAE that does not fit a family. BadFile."""
    open_vae(name, family.vae, hashed=False)


Details = tuple[dict[str, object], str]


def _lora(path: Path, header: Header) -> Details:
    """A LoRA's method, rank and layers."""
    roles = [(*file_layout.split(name), ref) for name, ref in header.tensors.items()]
    methods = {METHODS[role] for _, role, _ in roles if role in METHODS}
    ranks = Counter(
        ref.shape[0] for _, role, ref in roles if role in ("down", "hada_w1_b") and ref.shape
    )
    parts = {
        "text encoder" if "te" in layer.split("_")[1:2] or "text" in layer else "network"
        for layer, role, _ in roles
        if role
    }
    rank = ", ".join(str(one) for one, _ in ranks.most_common(4))
    details: dict[str, object] = {
        "method": ", ".join(sorted(methods)) or "LoRA",
        "rank": rank,
        "alpha": header.metadata.get("ss_network_alpha", ""),
        "layers": f"{len({layer for layer, role, _ in roles if role}):,} "
        f"({' and '.join(sorted(parts))})",
        "bundled words": ", ".join(file_layout.bundled_words(header.tensors)),
    }
    return details, base_model(header.tensors)


def _embedding(path: Path, header: Header) -> Details:
    """An embedding's word, vectors, and the family of their widths."""
    shapes = [ref.shape for ref in header.tensors.values() if ref.shape]
    widths = {shape[-1] for shape in shapes}
    base = TEXT_WIDTHS[2048] if len(widths) > 1 else TEXT_WIDTHS.get(min(widths, default=0), "")
    counts = sorted({shape[0] if len(shape) == 2 else 1 for shape in shapes})
    return {"word": file_layout.word_of(path), "vectors": counts[-1] if counts else 0}, base


def _vae(path: Path, header: Header) -> Details:
    """A VAE's latents, and whether it is a TAESD."""
    if is_taesd(header.tensors):
        longest_first = sorted(TRAINED_FOR, key=len, reverse=True)
        named = next((key for key in longest_first if key in path.name.lower()), "")
        return {"method": "TAESD, a tiny VAE for previews"}, TRAINED_FOR[named][1] if named else ""
    shapes = [
        ref.shape
        for name, ref in header.tensors.items()
        if name.endswith("decoder.conv_in.weight") and len(ref.shape) == 4
    ]
    channels = shapes[0][1] if shapes else 0
    return {"channels": channels}, LATENT_FAMILIES.get(channels, "")


def _text_encoder(path: Path, header: Header) -> Details:
    """A text encoder's kind and width."""
    found = text_key_maps.text_encoders(header.tensors)
    names = {"t5": "T5", "qwen3": "Qwen3", "clip": "CLIP"}
    widths = [*text_widths(header.tensors).values()] or [
        ref.shape[1]
        for name, ref in header.tensors.items()
        if name.endswith(("shared.weight", "embed_tokens.weight")) and len(ref.shape) == 2
    ][:1]
    details: dict[str, object] = {
        "method": ", ".join(names[kind] for kind in found.values()),
        "width": ", ".join(map(str, widths)),
    }
    return details, ""


def _ip_adapter(path: Path, header: Header) -> Details:
    """An IP-Adapter's projection, and the image encoder that it reads pictures by."""
    if ip_adapter.is_face_id(header.tensors):
        return {"method": "FaceID, which reads a face's identity: not supported"}, ""
    try:
        config, _ = ip_adapter.ip_adapter_in(header.tensors, path.name)
    except (UnknownLayout, MissingWeights):
        return {}, ""
    tokens = f", {config.tokens} tokens a picture" if config.tokens else ""
    method = f"{config.kind}{tokens}"
    details: dict[str, object] = {"method": method, "reads": clip_vision.needed(config)}
    return details, ip_adapter.made_for(config)


def _image_encoder(path: Path, header: Header) -> Details:
    """An image encoder's architecture."""
    try:
        config, _ = clip_vision.clip_vision_in(header.tensors, path.name)
    except (UnknownLayout, MissingWeights):
        return {}, ""
    architecture = clip_vision.ARCHITECTURES.get(config.width, f"CLIP, {config.width} wide")
    return {"method": architecture, "used": "by IP-Adapters: --ip-encoder"}, ""


def _t2i_adapter(path: Path, header: Header) -> Details:
    """A T2I-Adapter's method."""
    try:
        config, _ = t2i_adapter.t2i_adapter_in(header.tensors, path.name)
    except (UnknownLayout, MissingWeights):
        return {}, ""
    inputs = "grey pictures" if config.in_channels == 1 else "colour pictures"
    method = f"{'light' if config.light else 'full'}, of {inputs}"
    return {"method": method, "used": "--control"}, t2i_adapter.made_for(config)


def _control(path: Path, header: Header) -> Details:
    """A ControlNet's method."""
    return details(header.tensors), family_of(header.tensors)


def _other(path: Path, header: Header) -> Details:
    """A network that reads text: the family of its width."""
    widths = [
        ref.shape[1]
        for name, ref in header.tensors.items()
        if name.endswith("attn2.to_k.weight") and len(ref.shape) == 2
    ]
    return {}, TEXT_WIDTHS.get(widths[0], "") if widths else ""


_DETAILS = {
    "LoRA": _lora,
    "embedding": _embedding,
    "VAE": _vae,
    "text encoder": _text_encoder,
    "image encoder": _image_encoder,
    "IP-Adapter": _ip_adapter,
    "T2I-Adapter": _t2i_adapter,
    "ControlNet": _control,
}


def _said_base(metadata: Mapping[str, str]) -> str:
    """The base model by what trainers write."""
    return metadata.get("modelspec.architecture", "") or metadata.get("ss_base_model_version", "")


def _title(metadata: Mapping[str, str]) -> str:
    return metadata.get("modelspec.title", "") or metadata.get("ss_output_name", "")


def _trigger_words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The trigger phrase, else the tags that most pictures of the training set had."""
    if phrase := metadata.get("modelspec.trigger_phrase", ""):
        return tuple(word.strip() for word in phrase.split(",") if word.strip())
    try:
        sets = parse_json(metadata.get("ss_tag_frequency", "{}"))
    except ValueError:
        return ()
    counts: Counter[str] = Counter()
    for tags in sets.values() if isinstance(sets, dict) else ():
        if isinstance(tags, dict):
            numbers = {tag.strip(): n for tag, n in tags.items() if isinstance(n, int)}
            counts.update(numbers)
    return tuple(tag for tag, _ in counts.most_common(TAGS_SHOWN))
