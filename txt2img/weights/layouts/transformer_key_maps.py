"""Layers of diffusion transformers: names of the original layout → ours, made from a config.

The original layout is that of single files, ComfyUI's too. Ours is diffusers', which has a layer
for each of the queries, keys and values, and the last norm's scale before its shift.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from txt2img.errors import MissingWeights
from txt2img.models.configs import FluxConfig
from txt2img.system.text import shown
from txt2img.weights.formats.safetensors_file import NAME_MAX, TensorRef
from txt2img.weights.layouts.key_maps import Table, inverted, rename

Tensors = Mapping[str, TensorRef]
QKV = ("to_q", "to_k", "to_v")
ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")


@dataclass(frozen=True)
class LayerMap:
    """The original layout's layers as ours: renamed, cut out of fused ones, halves exchanged."""

    table: Table  # beginnings of names
    fused: dict[str, dict[str, int]] = field(default_factory=dict)  # → our layers and their rows
    swapped: tuple[str, ...] = ()  # ours: shift before scale in the original

    def renamed(self, tensors: Tensors) -> dict[str, TensorRef]:
        """The tensors under our names. Raises MissingWeights for fused ones of a wrong size."""
        result: dict[str, TensorRef] = {}
        for name, ref in tensors.items():
            for ours, part in self._parts(name, ref).items():
                if ours in result:
                    what = f"two tensors, one of them {shown(name)}, mean the same"
                    raise MissingWeights(f"{what}: {ours}")
                swaps = ours.rpartition(".")[0] in self.swapped
                result[ours] = part.swap_halves() if swaps else part
        return result

    def _parts(self, name: str, ref: TensorRef) -> dict[str, TensorRef]:
        """What a tensor of the original layout is in ours."""
        layer, _, kind = name.rpartition(".")
        if layer not in self.fused:
            ours = rename(name, self.table)
            return {} if ours is None else {ours: ref}
        total = sum(self.fused[layer].values())
        if ref.shape[:1] != (total,):
            raise MissingWeights(
                f"{shown(name, NAME_MAX)} has the shape {ref.shape}; it must have {total} rows"
            )
        parts, first = {}, 0
        for ours, rows in self.fused[layer].items():
            parts[f"{ours}.{kind}"] = ref.take(first, rows)
            first += rows
        return parts

    def original(self, name: str) -> str:
        """The original name of one of our tensors or layers; of a fused one, all of it."""
        back = inverted(self.table) | {
            ours: theirs for theirs, parts in self.fused.items() for ours in parts
        }
        return rename(name, back) or name


def norm_rows(theirs: str, ours: str, original: str = "scale") -> Table:
    """Rows of an RMSNorm, whose weight the original layout calls `original`."""
    return {f"{theirs}.{original}": f"{ours}.weight", theirs: ours}


def fused_rows(ours: str, names: tuple[str, ...], rows: int) -> dict[str, int]:
    """Our layers `ours`.name, each with the same number of rows of a fused one."""
    return {f"{ours}.{name}": rows for name in names}


def embedding_rows(theirs: str, ours: str) -> Table:
    """Rows of a two-layer embedding of Black Forest Labs."""
    return {f"{theirs}.in_layer": f"{ours}.linear_1", f"{theirs}.out_layer": f"{ours}.linear_2"}


def flux_layers(config: FluxConfig) -> LayerMap:
    """FLUX.1's layers."""
    width, swapped = config.width, "norm_out.linear"
    table: Table = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": swapped,
        **embedding_rows("time_in", "time_text_embed.timestep_embedder"),
        **embedding_rows("vector_in", "time_text_embed.text_embedder"),
        **embedding_rows("guidance_in", "time_text_embed.guidance_embedder"),
    }
    fused: dict[str, dict[str, int]] = {}
    for index in range(config.double_blocks):
        theirs, ours = f"double_blocks.{index}", f"transformer_blocks.{index}"
        for stream, end, added, names in (
            ("img", "", "", QKV),
            ("txt", "_context", "added_", ADDED_QKV),
        ):
            out = "to_add_out" if end else "to_out.0"
            table |= {
                f"{theirs}.{stream}_mod.lin": f"{ours}.norm1{end}.linear",
                f"{theirs}.{stream}_attn.proj": f"{ours}.attn.{out}",
                f"{theirs}.{stream}_mlp.0": f"{ours}.ff{end}.net.0.proj",
                f"{theirs}.{stream}_mlp.2": f"{ours}.ff{end}.net.2",
            }
            norm = f"{theirs}.{stream}_attn.norm"
            table |= norm_rows(f"{norm}.query_norm", f"{ours}.attn.norm_{added}q")
            table |= norm_rows(f"{norm}.key_norm", f"{ours}.attn.norm_{added}k")
            fused[f"{theirs}.{stream}_attn.qkv"] = fused_rows(f"{ours}.attn", names, width)
    for index in range(config.single_blocks):
        theirs, ours = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        table |= {
            f"{theirs}.modulation.lin": f"{ours}.norm.linear",
            f"{theirs}.linear2": f"{ours}.proj_out",
        }
        table |= norm_rows(f"{theirs}.norm.query_norm", f"{ours}.attn.norm_q")
        table |= norm_rows(f"{theirs}.norm.key_norm", f"{ours}.attn.norm_k")
        parts = fused_rows(f"{ours}.attn", QKV, width) | {f"{ours}.proj_mlp": 4 * width}
        fused[f"{theirs}.linear1"] = parts
    return LayerMap(table, fused, (swapped,))


def flux_from_original(tensors: Tensors, config: FluxConfig) -> dict[str, TensorRef]:
    """FLUX.1's tensors under our names. Raises MissingWeights."""
    return flux_layers(config).renamed(tensors)
