"""Adapter files: read warily, matched with a model's layers, merged into its weights.

W becomes W + strength · alpha / rank · up · down (Hu et al. 2021), computed in float32; the other
kinds are in weights/lycoris.py.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from txt2img.errors import BadFile, MissingWeights, UnknownLayout
from txt2img.models.text_encoder import TextEncoder
from txt2img.models.unet import UNet
from txt2img.system.files import parse_object, read_json
from txt2img.system.text import shown
from txt2img.weights.adapters import key_names, lycoris
from txt2img.weights.adapters.base_model import base_model
from txt2img.weights.formats import safetensors_file, tensors
from txt2img.weights.formats.safetensors_file import Header, Stored
from txt2img.weights.registry.hashes import sha256

# Alpha may be kept as a whole number, and IA3's side as a yes or no: both are read as they are.
SCALARS = ("alpha", "side")
PEFT = "lora_adapter_metadata"  # where diffusers writes peft's settings, as JSON
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TERMS_MAX = 64  # of a series
ALPHA_MAX = 1e9
OTHER = "it is no LoRA, or one for another kind of model than"


@dataclass(frozen=True)
class Piece:
    """What an adapter file holds for one layer."""

    spelled: str  # the layer's name in the file
    home: str  # and ours
    parts: dict[str, Stored]
    alpha: float | None  # or the one number that another kind has: see weights/rotations.py

    def read(self) -> dict[str, Tensor]:
        """The tensors by role, float32, on the CPU. Raises MissingWeights, BadFile."""
        named = {f"{self.spelled} {role}": stored for role, stored in self.parts.items()}
        found = tensors.read(named, torch.device("cpu"), torch.float32)
        return {role: found[f"{self.spelled} {role}"] for role in self.parts}


@dataclass(frozen=True)
class Adapter:
    """An adapter file, matched with a model."""

    name: str
    pieces: tuple[Piece, ...]
    unknown: tuple[str, ...] = ()  # tensors that belong to no layer
    strangers: int = field(default=0)  # how many layers those are

    def report(self) -> str:
        """How much of the file applies, and what does not."""
        total = len(self.pieces) + self.strangers
        rest = f"; this model has no place for {_some(self.unknown)}" if self.unknown else ""
        return f"LoRA {self.name}: applied {len(self.pieces)} of {total}{rest}"


def open_adapter(
    name: str, path: Path, network: UNet, encoders: Sequence[TextEncoder], family: str
) -> Adapter:
    """The file, its layers found in the model and its shapes compared; no weights are read.

    Raises BadFile, UnknownLayout if none of it applies, MissingWeights if shapes differ.
    """
    header = safetensors_file.header(path)
    settings = _settings(header, path)
    known = key_names.key_aliases(network, encoders)
    layers = key_names.layers(network, encoders)
    found: dict[str, dict[str, Stored]] = {}
    whole: dict[str, list[str]] = {}
    for tensor, stored in header.tensors.items():
        layer, role = key_names.split(tensor)
        found.setdefault(layer, {})[role or tensor] = stored
        whole.setdefault(layer, []).append(tensor)
    pieces, unknown = [], []
    _check_kinds(path.name, found)
    for layer, parts in found.items():
        home = known.get(layer)
        if home is None or not _complete(parts):
            unknown.append(layer)
            continue
        pieces.append(_piece(layer, home, parts, settings))
    if not pieces:
        kind = base_model(header.tensors)
        what = f"it is made for {kind}, not for" if kind else OTHER
        raise UnknownLayout(
            f"{path.name}: applied 0 of {len(found)}; {what} {family}: "
            f"it holds {_some(list(header.tensors))}"
        )
    _check_once(path.name, pieces)
    kind = base_model(header.tensors) or "another model"
    for piece in pieces:
        _check(path.name, piece, layers[piece.home], kind)
    missed = tuple(tensor for layer in unknown for tensor in whole[layer])
    return Adapter(name, tuple(pieces), missed, len(unknown))


def short_hash(path: Path) -> str:
    """Twelve digits that other programs know a LoRA by: of its tensors' bytes, or as it says."""
    header = safetensors_file.header(path)
    said = header.metadata.get("sshs_model_hash", "")
    if re.fullmatch("[0-9a-f]{64}", said):
        return said[:12]
    start = min((stored.start for stored in header.tensors.values()), default=0)
    return sha256(path, start)[:12]


def merged(layer: nn.Module, pieces: list[tuple[Piece, float]]) -> dict[str, Tensor]:
    """A layer's weight and bias, those that change, with pieces at their strengths; in its dtype.

    Raises MissingWeights for values that are not finite.
    """
    made: dict[str, Tensor] = {}
    for piece, strength in pieces:
        parts = {role: value.to(_weight(layer).device) for role, value in piece.read().items()}
        if lycoris.touches_weight(parts):
            weight = made.get("weight", _weight(layer).float())
            made["weight"] = lycoris.changed(weight, parts, piece.alpha, strength)
        if lycoris.touches_bias(parts):
            bias = made.get("bias", _bias(layer).float())
            made["bias"] = lycoris.changed_bias(bias, parts, strength)
    cast = {name: value.to(_weight(layer).dtype) for name, value in made.items()}
    if not all(bool(torch.isfinite(value).all()) for value in cast.values()):
        raise MissingWeights(
            f"{shown(pieces[-1][0].spelled, safetensors_file.NAME_MAX)}: "
            f"the LoRA makes weights too large for "
            f"{_weight(layer).dtype}; use less of it, or --dtype float32"
        )
    return cast


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _bias(layer: nn.Module) -> Tensor:
    if not isinstance(layer.bias, Tensor):
        raise ValueError("a bias for a layer without one")
    return layer.bias


def _complete(parts: Mapping[str, Stored]) -> bool:
    """Whether it is all known, and more than numbers that say how to use what is not there."""
    roles = set(parts)
    unknown = roles - set(key_names.ENDINGS.values())
    return not unknown and bool(roles - {"alpha", "side"}) and ("ia3" in roles) == ("side" in roles)


def _piece(layer: str, home: str, parts: dict[str, Stored], settings: "Settings") -> Piece:
    """One layer's tensors, its numbers read. Raises BadFile."""
    kept = {role: stored for role, stored in parts.items() if role not in SCALARS}
    alpha = _scalar(f"{layer}.alpha", parts["alpha"]) if "alpha" in parts else None
    if "side" in parts:
        side = "on_input" if _scalar(f"{layer}.on_input", parts["side"]) else "on_output"
        kept = {side: kept["ia3"]}
    if alpha is None and "down" in kept and kept["down"].shape:
        alpha = settings.alpha(layer, kept["down"].shape[0])
    if "oft_r" in kept:
        alpha = settings.terms(layer)
    return Piece(layer, home, kept, alpha)


def _scalar(name: str, stored: Stored) -> float:
    """A tensor's only number. Raises MissingWeights."""
    value = tensors.tensor(name, stored)
    if value.numel() != 1 or not math.isfinite(number := float(value.double().item())):
        raise MissingWeights(
            f"{stored.path.name}: {shown(name, safetensors_file.NAME_MAX)} is not one number"
        )
    return number


def _check_once(file: str, pieces: list[Piece]) -> None:
    """No layer may have two pieces. Raises MissingWeights."""
    by_home: dict[str, str] = {}
    for piece in pieces:
        if piece.home in by_home:
            names = f"{shown(by_home[piece.home], 120)} and {shown(piece.spelled, 120)}"
            raise MissingWeights(f"{file}: {names} mean the same layer")
        by_home[piece.home] = piece.spelled


def _check_kinds(file: str, found: Mapping[str, Mapping[str, Stored]]) -> None:
    """Raise UnknownLayout for kinds that cannot be read, which have names of their own."""
    for parts in found.values():
        if "old_oft" in parts:
            raise UnknownLayout(
                f"{file} is an OFT of peft from before 0.15, whose file does not say all that it "
                "does; merge it into its model with the peft that made it"
            )
        stages = parts["boft_r"].shape[:1] if "boft_r" in parts else (1,)
        if stages and stages != (1,):
            raise UnknownLayout(
                f"{file} is a BOFT of peft with {stages[0]} butterfly factors; only 1 is "
                "supported: merge it into its model with peft"
            )


def _check(file: str, piece: Piece, layer: nn.Module, kind: str) -> None:
    """Merge without memory, if shapes do not tell: what does not fit shows. MissingWeights."""
    if lycoris.fits(_weight(layer).shape, {r: stored.shape for r, stored in piece.parts.items()}):
        return
    parts = {role: torch.empty(stored.shape, device="meta") for role, stored in piece.parts.items()}
    try:
        if lycoris.touches_weight(parts):
            lycoris.changed(_weight(layer).to("meta", torch.float32), parts, piece.alpha, 1.0)
        if lycoris.touches_bias(parts):
            lycoris.changed_bias(_bias(layer).to("meta", torch.float32), parts, 1.0)
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        shapes = ", ".join(f"{role} {stored.shape}" for role, stored in piece.parts.items())
        raise MissingWeights(
            f"{file}: {shown(piece.spelled, safetensors_file.NAME_MAX)} ({shapes}) does "
            f"not fit a layer of "
            f"shape {tuple(_weight(layer).shape)}; it was made for {kind}, or is not whole"
        ) from error


def _some(names: Sequence[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        ", ".join(shown(name, safetensors_file.NAME_MAX) for name in names[:3]) or "nothing"
    ) + more


@dataclass(frozen=True)
class Settings:
    """peft's settings of a file, by part: "unet", "text_encoder", …; empty for other files."""

    by_part: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def alpha(self, layer: str, rank: int) -> float | None:
        """The alpha of a layer, None where nothing is said; patterns are names' endings. BadFile.

        With rsLoRA (Kalajdzievski 2023) the scale is alpha / √rank, written here as an alpha.
        """
        part, _, name = layer.partition(".")
        config = self.by_part.get(part, {})
        pattern = config.get("alpha_pattern")
        named = pattern if isinstance(pattern, dict) else {}
        fitting = [key for key in named if name == key or name.endswith(f".{key}")]
        value = named[max(fitting, key=len)] if fitting else config.get("lora_alpha")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not abs(value) <= ALPHA_MAX:
            raise BadFile(f"lora_alpha is {shown(value)}; at most {ALPHA_MAX:g} can be")
        return value * math.sqrt(rank) if config.get("use_rslora") is True else float(value)

    def terms(self, layer: str) -> float | None:
        """How many terms its series has, 0 for all; None where nothing is said. BadFile."""
        config = self.by_part.get(layer.partition(".")[0], {})
        if config.get("use_cayley_neumann") is False:
            return 0.0
        terms = config.get("num_cayley_neumann_terms")
        if terms is None:
            return None
        if type(terms) is not int or not 1 <= terms <= TERMS_MAX:
            raise BadFile(f"num_cayley_neumann_terms is {shown(terms)}; allowed: 1 … {TERMS_MAX}")
        return float(terms)


def _settings(header: Header, path: Path) -> Settings:
    """peft's settings in a header: "unet.r": 4, "unet.lora_alpha": 8, … Raises BadFile.

    Or those beside the file, as peft itself writes them.
    """
    beside = path.parent / PEFT_CONFIG
    if path.name == PEFT_FILE and beside.is_file():
        return Settings({"base_model": read_json(beside)})
    if PEFT not in header.metadata:
        return Settings()
    by_part: dict[str, dict[str, object]] = {}
    rows = parse_object(header.metadata[PEFT].encode("utf-8", "replace"), path.name)
    for key, value in rows.items():
        part, _, name = key.partition(".")
        by_part.setdefault(part, {})[name] = value
        if isinstance(value, float) and not math.isfinite(value):
            raise BadFile(f"{path.name}: {shown(key)} is not finite")
    return Settings(by_part)
