"""Tensors' names in adapter files, without torch: a LoRA's roles, an embedding's vectors.

Embeddings are A1111's (`emb_params`), diffusers' (one tensor, named after its token) and those with
a tensor for each of SDXL's text encoders (`clip_l`, `clip_g`; `text_encoders_0` and `_1`).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.configs import TextConfig
from txt2img.request.adapters import Embedding, find_words
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import NAME_MAX, TensorRef
from txt2img.weights.layouts.components import first_names
from txt2img.weights.registry.hashes import sha256, tensors_start

# Endings of tensors' names → roles, as in lycoris.py and oft.py.
ENDINGS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down",
    ".up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora",
    ".lora_magnitude_vector": "dora",
    ".lora_magnitude_vector.weight": "dora",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".w_norm": "w_norm",
    ".b_norm": "b_norm",
    ".on_input": "side",
    ".weight": "ia3",
    ".oft_R.weight": "oft_r",
    ".boft_R": "boft_r",
    ".boft_s": "rescale",
    ".oft_r": "old_oft",
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")},
    **{
        f".{name}": name
        for name in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
            *("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("oft_blocks", "rescale"),
        )
    },
}
_LONGEST_FIRST = sorted(ENDINGS, key=len, reverse=True)
A1111 = "emb_params"
XL = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
GENERIC = (A1111, "*", "string_to_param.*", *XL[0], *XL[1])  # names that are no token


BUNDLE = "bundle_emb."  # where the names of a LoRA's learnt words begin
_BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(?:string_to_param\.\*|emb_params|clip_l|clip_g)")


def bundled_words(tensors: Iterable[str]) -> list[str]:
    """The learnt words that a LoRA's file holds too, as A1111 and OneTrainer write them."""
    matches = (_BUNDLED.fullmatch(name) for name in tensors)
    return list(dict.fromkeys(match[1] for match in matches if match))


def with_bundled_words(
    request: Request, paths: AdapterPaths, encoders: Sequence[TextConfig], notes: list[str]
) -> Request:
    """The request with the words that its LoRAs bring along and its prompts use, as embeddings.

    An embedding of that name given otherwise comes first. Words for other text encoders are left
    out, with a note. BadFile.
    """
    known = paths.embedding_files()
    files = dict.fromkeys(paths.lora_file(lora.name) for lora in request.loras)
    bundled: dict[str, Path] = {}
    for path in files:
        for word in bundled_words(safetensors_file.header(path).tensors):
            bundled.setdefault(word, path)
    recorded = {word.token: word for word in request.embeddings}
    kept = [word for word in request.embeddings if word.token not in bundled.keys() - known.keys()]
    text = f"{request.prompt}\n{request.negative}"
    for word, path in bundled.items():
        if word in known or not any(find_words([word], text)):
            continue
        try:
            vectors_of(path, encoders, word)
        except (UnknownLayout, MissingWeights):
            note = f"{path.name}: its word {shown(word)} is for other text encoders"
            notes += [] if note in notes else [note]
            continue
        paths.bundled[word] = path
        kept.append(recorded.get(word, Embedding(word)))
    return request.changed(embeddings=tuple(kept))


def split(name: str) -> tuple[str, str]:
    """Split a tensor's name into layer and role; the role is empty for an unknown ending."""
    plain = name.replace(".default", "")  # peft's name of an adapter
    for ending in _LONGEST_FIRST:
        if plain.endswith(ending):
            return plain.removesuffix(ending).replace(".processor.", "."), ENDINGS[ending]
    return name, ""


def word_of(path: Path) -> str:
    """The token that a file's only tensor is named after, else the file's name. Raises BadFile."""
    names = list(safetensors_file.header(path).tensors)
    stem = path.name.removesuffix(".safetensors")
    return names[0] if len(names) == 1 and names[0] not in GENERIC else stem


def vectors_of(
    path: Path, encoders: Sequence[TextConfig], word: str = ""
) -> list[tuple[str, TensorRef]]:
    """The tensor of vectors for each text encoder, by a file's header; a LoRA may bundle a word's.

    Raises BadFile, UnknownLayout for other files, MissingWeights for vectors of another width.
    """
    widths = [encoder.width for encoder in encoders]
    tensors, start = safetensors_file.header(path).tensors, f"{BUNDLE}{word}."
    bundled = {k.removeprefix(start): ref for k, ref in tensors.items() if k.startswith(start)}
    parts = _parts(path, bundled or tensors, len(encoders))
    for (name, ref), encoder in zip(parts, encoders, strict=True):
        count, most = ref.shape[0] if len(ref.shape) == 2 else 1, encoder.length - 2
        where = f"{path.name}: {shown(name, NAME_MAX)}"
        if len(ref.shape) not in (1, 2) or ref.shape[-1] != encoder.width:
            needed = " and ".join(map(str, widths))
            raise MissingWeights(
                f"{where} has the shape {ref.shape}; this model takes vectors of width {needed}"
            )
        if not 1 <= count <= most:
            raise MissingWeights(
                f"{where} has {count} vectors; a prompt's chunk has room for {most}"
            )
    return parts


def _parts(path: Path, tensors: dict[str, TensorRef], encoders: int) -> list[tuple[str, TensorRef]]:
    """The tensor of each encoder, in order. Raises UnknownLayout."""
    if encoders == 1 and len(tensors) == 1:
        return list(tensors.items())
    for pair in XL:
        if encoders == len(pair) and set(tensors) == set(pair):
            return [(name, tensors[name]) for name in pair]
    some = first_names(list(tensors))
    kind = "clip_l and clip_g" if encoders > 1 else "one tensor of vectors"
    raise UnknownLayout(
        f"{path.name} is no embedding for this model: it contains {some}; {kind} is needed"
    )


def short_hash(path: Path) -> str:
    """A1111's hash of a LoRA, 12 digits: kohya's in the metadata, else of the tensors' bytes."""
    recorded = safetensors_file.header(path).metadata.get("sshs_model_hash", "")
    if re.fullmatch("[0-9a-f]{64}", recorded):
        return recorded[:12]
    return sha256(path, tensors_start(path))[:12]
