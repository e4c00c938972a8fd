"""LoRA and LyCORIS files: checked, matched with a model's layers, merged into its weights.

W becomes W + strength · alpha / rank · up · down (Hu et al. 2021), computed in float32; lycoris.py
has the other methods.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from txt2img.errors import BadFile, MissingWeights, UnknownLayout
from txt2img.models.clip import TextEncoder
from txt2img.models.optimize.packed import Change, packed_weight
from txt2img.models.unet import UNet
from txt2img.system.files import parse_object, read_json
from txt2img.system.text import shown
from txt2img.weights.adapters import file_layout, key_names, lycoris
from txt2img.weights.adapters.base_model import base_model
from txt2img.weights.adapters.key_names import Share
from txt2img.weights.formats import safetensors_file, tensors
from txt2img.weights.formats.safetensors_file import NAME_MAX, Header, TensorRef
from txt2img.weights.layouts.components import first_names

# Alpha may be an integer, and IA3's side a boolean: both are read in their own type.
SCALARS = ("alpha", "side")
PEFT = "lora_adapter_metadata"  # where diffusers writes peft's settings, as JSON
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TERMS_MAX = 64  # of the Cayley-Neumann series
ALPHA_MAX = 1e9
# Roles of tensors that have the rows of the layer, and of those that have none of them.
ROW_ROLES = (
    *("up", "diff", "diff_b", "w_norm", "b_norm", "dora", "on_output"),
    *("hada_w1_a", "hada_w2_a"),
)
UNCUT_ROLES = ("down", "on_input", "hada_w1_b", "hada_w2_b")
NO_MATCH = "it is no LoRA, or one for another kind of model than"


@dataclass(frozen=True)
class Piece:
    """An adapter file's tensors for one layer."""

    key: str  # the layer's name in the file
    layer: str  # our name, a key of key_names.layers
    parts: dict[str, TensorRef]  # by role
    alpha: float | None  # peft's OFT has its number of terms here
    rows: tuple[int, int] | None = None  # of a Kronecker product, which can only be cut when made
    swapped: bool = False  # of such a one: the halves of its rows are exchanged

    def read(self, files: tensors.Files) -> dict[str, Tensor]:
        """Read the tensors, by role, in float32, onto the CPU. Raises MissingWeights, BadFile."""
        named = {f"{self.key} {role}": ref for role, ref in self.parts.items()}
        values = tensors.read(named, torch.device("cpu"), torch.float32, files=files)
        return {role: values[f"{self.key} {role}"] for role in self.parts}

    def cut(self, delta: Tensor) -> Tensor:
        """The layer's rows of a fused layer's difference."""
        if self.rows is not None:
            delta = delta[self.rows[0] : sum(self.rows)]
        return delta.roll(len(delta) // 2, 0) if self.swapped else delta


@dataclass(frozen=True)
class Adapter:
    """An adapter file, matched with a model's layers."""

    name: str
    pieces: tuple[Piece, ...]
    unknown: tuple[str, ...] = ()  # tensors of layers that the model has not
    unknown_layers: int = 0

    def report(self) -> str:
        """A line for the user: how many layers apply, and which tensors do not."""
        applied = len({piece.key for piece in self.pieces})
        total = applied + self.unknown_layers
        rest = f"; this model has no place for {first_names(self.unknown)}" if self.unknown else ""
        return f"LoRA {self.name}: applied {applied} of {total}{rest}"


def open_adapter(
    name: str, path: Path, network: nn.Module, encoders: Sequence[TextEncoder], family: str
) -> Adapter:
    """Match a file with a model's layers and compare shapes, without reading any weights.

    Raises BadFile, UnknownLayout if no layer matches, MissingWeights if shapes differ.
    """
    header = safetensors_file.header(path)
    settings = _settings(header, path)
    aliases = _aliases(network, encoders)
    layers = key_names.layers(network, encoders)
    by_key: dict[str, dict[str, TensorRef]] = {}
    names: dict[str, list[str]] = {}
    for tensor, ref in header.tensors.items():
        if tensor.startswith(file_layout.BUNDLE):  # a learnt word
            continue
        key, role = file_layout.split(tensor)
        by_key.setdefault(key, {})[role or tensor] = ref
        names.setdefault(key, []).append(tensor)
    _check_methods(path.name, by_key)
    pieces: list[tuple[Share, Piece]] = []
    unknown, files = [], tensors.Files()
    for key, parts in by_key.items():
        shares = aliases.get(key) or aliases.get(key.replace(".", "_"), ())
        if shares and _complete(parts):
            pieces += [(share, _piece(key, share, parts, settings, files)) for share in shares]
        else:
            unknown.append(key)
    trained_on = base_model(header.tensors)
    if not pieces:
        cause = f"it is made for {trained_on}, not for" if trained_on else NO_MATCH
        raise UnknownLayout(
            f"{path.name}: applied 0 of {len(by_key)}; {cause} {family}: "
            f"it contains {first_names(list(header.tensors))}"
        )
    kept = _without_repeats(pieces)
    _check_once(path.name, kept)
    for piece in kept:
        _check_shapes(path.name, piece, layers[piece.layer], trained_on or "another model")
    return Adapter(name, tuple(kept), tuple(n for k in unknown for n in names[k]), len(unknown))


def _aliases(network: nn.Module, encoders: Sequence[TextEncoder]) -> dict[str, tuple[Share, ...]]:
    """All names that files may have for the model's layers → ours."""
    aliases = key_names.key_aliases(network, encoders)
    if isinstance(network, UNet):
        return aliases
    from txt2img.weights.adapters import transformer_key_names

    return aliases | transformer_key_names.aliases(network)


def _without_repeats(pieces: Sequence[tuple[Share, Piece]]) -> list[Piece]:
    """The pieces without those of the original layout whose layers the file has in ours as well.

    Some trainers of Z-Image write both.
    """
    ours = {share.layer for share, _ in pieces if not share.original}
    return [piece for share, piece in pieces if not (share.original and share.layer in ours)]


def merge(
    layer: nn.Module, pieces: list[tuple[Piece, float]], files: tensors.Files
) -> dict[str, Tensor]:
    """Merge pieces at their strengths: a layer's changed weight and bias, in its dtype.

    A weight that is packed is left to `weight_change`.

    Raises MissingWeights for values that are not finite.
    """
    new: dict[str, Tensor] = {}
    for piece, strength in pieces:
        parts = {role: value.to(_weight(layer).device) for role, value in piece.read(files).items()}
        if lycoris.changes_weight(parts) and packed_weight(layer) is None:
            weight = new.get("weight", _weight(layer).float())
            new["weight"] = lycoris.merged_weight(weight, parts, piece.alpha, strength, piece.cut)
        if lycoris.changes_bias(parts):
            bias = new.get("bias", _bias(layer).float())
            new["bias"] = lycoris.merged_bias(bias, parts, strength)
    cast = {name: value.to(layer.get_parameter(name).dtype) for name, value in new.items()}
    if not all(bool(torch.isfinite(value).all()) for value in cast.values()):
        dtype = _weight(layer).dtype
        advice = "" if dtype == torch.float32 else ", or --dtype float32"
        raise MissingWeights(
            f"{shown(pieces[-1][0].key, NAME_MAX)}: the LoRA makes weights too large for "
            f"{dtype}; use less of it{advice}"
        )
    return cast


def weight_change(pieces: list[tuple[Piece, float]], files: tensors.Files) -> Change:
    """What pieces at their strengths do to a weight in float32, each time that it is unpacked.

    Raises MissingWeights, BadFile.
    """
    read = [(piece, piece.read(files), strength) for piece, strength in pieces]
    moved: dict[torch.device, list[tuple[Piece, dict[str, Tensor], float]]] = {}

    def change(weight: Tensor) -> Tensor:
        device = weight.device
        if device not in moved:
            moved[device] = [
                (piece, {role: value.to(device) for role, value in parts.items()}, strength)
                for piece, parts, strength in read
                if lycoris.changes_weight(parts)
            ]
        for piece, parts, strength in moved[device]:
            weight = lycoris.merged_weight(weight, parts, piece.alpha, strength, piece.cut)
        return weight

    return change


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """The shape of a layer's weight, packed or not."""
    packed = packed_weight(layer)
    return tuple(_weight(layer).shape) if packed is None else packed.shape


def _weight(layer: nn.Module) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _bias(layer: nn.Module) -> Tensor:
    if not isinstance(layer.bias, Tensor):
        raise ValueError("a bias for a layer without one")
    return layer.bias


def _complete(parts: Mapping[str, TensorRef]) -> bool:
    """Whether all roles are known, and there is more than the numbers that go with weights."""
    roles = set(parts)
    unknown = roles - set(file_layout.ENDINGS.values())
    return not unknown and bool(roles - {"alpha", "side"}) and ("ia3" in roles) == ("side" in roles)


def _piece(
    key: str, share: Share, parts: dict[str, TensorRef], settings: "Settings", files: tensors.Files
) -> Piece:
    """One layer's tensors, with its scalars read. Raises BadFile, MissingWeights, UnknownLayout."""
    weights = {role: ref for role, ref in parts.items() if role not in SCALARS}
    alpha = _scalar(f"{key}.alpha", parts["alpha"], files) if "alpha" in parts else None
    if "side" in parts:
        side = "on_input" if _scalar(f"{key}.on_input", parts["side"], files) else "on_output"
        weights = {side: weights["ia3"]}
    if alpha is None and "down" in weights and weights["down"].shape:
        alpha = settings.alpha(key, weights["down"].shape[0])
    if "oft_r" in weights:
        alpha = settings.terms(key)
    if share.rows is None and not share.swapped:
        return Piece(key, share.layer, weights, alpha)
    if any(role.startswith("lokr_") for role in weights):
        rows = None if share.rows is None else share.rows[:2]
        return Piece(key, share.layer, weights, alpha, rows, share.swapped)
    cut = {role: _cut(key, share, role, ref) for role, ref in weights.items()}
    return Piece(key, share.layer, cut, alpha)


def _cut(key: str, share: Share, role: str, ref: TensorRef) -> TensorRef:
    """A layer's rows of a fused layer's tensor. Raises MissingWeights, UnknownLayout."""
    if role in UNCUT_ROLES:
        return ref
    if role not in ROW_ROLES:
        raise UnknownLayout(
            f"{ref.path.name}: {shown(key, NAME_MAX)} turns several layers as one ({role}), which "
            "is not supported; merge it into its model with the program that made it"
        )
    if share.rows is not None:
        first, count, total = share.rows
        if ref.shape[:1] != (total,):
            raise MissingWeights(
                f"{ref.path.name}: {shown(key, NAME_MAX)} ({role} {ref.shape}) does not fit layers "
                f"of {total} rows; it was made for another model, or is not whole"
            )
        ref = ref.take(first, count)
    return ref.swap_halves() if share.swapped else ref


def _scalar(name: str, ref: TensorRef, files: tensors.Files) -> float:
    """The value of a tensor of one number. Raises MissingWeights."""
    value = tensors.read_stored(name, ref, files)
    if value.numel() != 1 or not math.isfinite(number := float(value.double().item())):
        raise MissingWeights(f"{ref.path.name}: {shown(name, NAME_MAX)} is not one number")
    return number


def _check_once(file: str, pieces: list[Piece]) -> None:
    """Raise MissingWeights if two keys of the file mean the same layer."""
    keys: dict[str, str] = {}
    for piece in pieces:
        if piece.layer in keys:
            names = f"{shown(keys[piece.layer], 120)} and {shown(piece.key, 120)}"
            raise MissingWeights(f"{file}: {names} mean the same layer")
        keys[piece.layer] = piece.key


def _check_methods(file: str, by_key: Mapping[str, Mapping[str, TensorRef]]) -> None:
    """Raise UnknownLayout for methods that are not supported; their roles tell."""
    for parts in by_key.values():
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


def _check_shapes(file: str, piece: Piece, layer: nn.Module, trained_on: str) -> None:
    """Try the merge on the meta device, unless shapes alone prove it. Raises MissingWeights."""
    shapes = {role: ref.shape for role, ref in piece.parts.items()}
    if lycoris.surely_fits(_shape(layer), shapes):
        return
    parts = {role: torch.empty(shape, device="meta") for role, shape in shapes.items()}
    try:
        if lycoris.changes_weight(parts):
            weight = torch.empty(_shape(layer), device="meta")
            lycoris.merged_weight(weight, parts, piece.alpha, 1.0, piece.cut)
        if lycoris.changes_bias(parts):
            lycoris.merged_bias(_bias(layer).to("meta", torch.float32), parts, 1.0)
    except (RuntimeError, ValueError, IndexError, KeyError) as error:
        listed = ", ".join(f"{role} {shape}" for role, shape in shapes.items())
        raise MissingWeights(
            f"{file}: {shown(piece.key, NAME_MAX)} ({listed}) does not fit a layer of "
            f"shape {_shape(layer)}; it was made for {trained_on}, or is not whole"
        ) from error


@dataclass(frozen=True)
class Settings:
    """peft's settings of a file, by component: "unet", "text_encoder"; empty for other files."""

    by_part: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def alpha(self, layer: str, rank: int) -> float | None:
        """A layer's alpha, None if there is none; keys of alpha_pattern are endings. BadFile.

        rsLoRA (Kalajdzievski 2023) scales by alpha / √rank, which is an alpha of alpha · √rank.
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
        """OFT's number of Cayley-Neumann terms: 0 for the exact inverse, None if unset. BadFile."""
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
    """peft's settings: its adapter_config.json, or diffusers' header metadata. Raises BadFile.

    The metadata's keys look like "unet.r" and "unet.lora_alpha".
    """
    config = path.parent / PEFT_CONFIG
    if path.name == PEFT_FILE and config.is_file():
        return Settings({"base_model": read_json(config)})
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
