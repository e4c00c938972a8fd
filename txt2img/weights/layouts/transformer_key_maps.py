"""Layers of diffusion transformers: names of the original layout → ours, made from a config.

The original layout is that of single files, ComfyUI's too. Ours is diffusers', which has a layer
for each of the queries, keys and values, and the last norm's scale before its shift.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from txt2img.errors import MissingWeights
from txt2img.models.configs import Flux2Config, FluxConfig, SD3Config, ZImageConfig
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
                    message = f"two tensors, one of them {shown(name)}, mean the same"
                    raise MissingWeights(f"{message}: {ours}")
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
        return rename(name, self._back) or name

    @cached_property
    def _back(self) -> dict[str, str]:
        whole = {ours: theirs for theirs, parts in self.fused.items() for ours in parts}
        return inverted(self.table) | whole


Fused = dict[str, dict[str, int]]
# Black Forest Labs' two streams, and the endings of ours: modules, norms, projections.
STREAMS = (("img", "", "", QKV, "to_out.0"), ("txt", "_context", "added_", ADDED_QKV, "to_add_out"))


def norm_rows(theirs: str, ours: str) -> Table:
    """Rows of an RMSNorm, whose weight Black Forest Labs call its scale."""
    return {f"{theirs}.scale": f"{ours}.weight", theirs: ours}


def fused_rows(ours: str, names: tuple[str, ...], rows: int) -> dict[str, int]:
    """Our layers `ours`.name, each with the same number of rows of a fused one."""
    return {f"{ours}.{name}": rows for name in names}


def embedding_rows(theirs: str, ours: str) -> Table:
    """Rows of a two-layer embedding of Black Forest Labs."""
    return {f"{theirs}.in_layer": f"{ours}.linear_1", f"{theirs}.out_layer": f"{ours}.linear_2"}


def double_block(index: int, width: int) -> tuple[Table, Fused]:
    """Attention of one of FLUX's blocks with weights of their own for text and picture."""
    table: Table = {}
    fused: Fused = {}
    ours = f"transformer_blocks.{index}.attn"
    for stream, _, added, names, out in STREAMS:
        theirs = f"double_blocks.{index}.{stream}_attn"
        table |= norm_rows(f"{theirs}.norm.query_norm", f"{ours}.norm_{added}q")
        table |= norm_rows(f"{theirs}.norm.key_norm", f"{ours}.norm_{added}k")
        table[f"{theirs}.proj"] = f"{ours}.{out}"
        fused[f"{theirs}.qkv"] = fused_rows(ours, names, width)
    return table, fused


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
    fused: Fused = {}
    for index in range(config.double_blocks):
        rows, cuts = double_block(index, width)
        fused |= cuts
        table |= rows
        theirs, ours = f"double_blocks.{index}", f"transformer_blocks.{index}"
        for stream, end, *_ in STREAMS:
            table[f"{theirs}.{stream}_mod.lin"] = f"{ours}.norm1{end}.linear"
            table[f"{theirs}.{stream}_mlp.0"] = f"{ours}.ff{end}.net.0.proj"
            table[f"{theirs}.{stream}_mlp.2"] = f"{ours}.ff{end}.net.2"
    for index in range(config.single_blocks):
        theirs, ours = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        table[f"{theirs}.modulation.lin"] = f"{ours}.norm.linear"
        table[f"{theirs}.linear2"] = f"{ours}.proj_out"
        table |= norm_rows(f"{theirs}.norm.query_norm", f"{ours}.attn.norm_q")
        table |= norm_rows(f"{theirs}.norm.key_norm", f"{ours}.attn.norm_k")
        parts = fused_rows(f"{ours}.attn", QKV, width) | {f"{ours}.proj_mlp": 4 * width}
        fused[f"{theirs}.linear1"] = parts
    return LayerMap(table, fused, (swapped,))


def flux2_layers(config: Flux2Config) -> LayerMap:
    """FLUX.2's layers; its single blocks are fused in diffusers' layout too."""
    swapped = "norm_out.linear"
    table: Table = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": swapped,
        **embedding_rows("time_in", "time_guidance_embed.timestep_embedder"),
        **embedding_rows("guidance_in", "time_guidance_embed.guidance_embedder"),
    }
    for kind in ("double_stream_modulation_img", "double_stream_modulation_txt"):
        table[f"{kind}.lin"] = f"{kind}.linear"
    table["single_stream_modulation.lin"] = "single_stream_modulation.linear"
    fused: Fused = {}
    for index in range(config.double_blocks):
        rows, cuts = double_block(index, config.width)
        fused |= cuts
        table |= rows
        theirs, ours = f"double_blocks.{index}", f"transformer_blocks.{index}"
        for stream, end, *_ in STREAMS:
            table[f"{theirs}.{stream}_mlp.0"] = f"{ours}.ff{end}.linear_in"
            table[f"{theirs}.{stream}_mlp.2"] = f"{ours}.ff{end}.linear_out"
    for index in range(config.single_blocks):
        theirs, ours = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        table[f"{theirs}.linear1"] = f"{ours}.attn.to_qkv_mlp_proj"
        table[f"{theirs}.linear2"] = f"{ours}.attn.to_out"
        table |= norm_rows(f"{theirs}.norm.query_norm", f"{ours}.attn.norm_q")
        table |= norm_rows(f"{theirs}.norm.key_norm", f"{ours}.attn.norm_k")
    return LayerMap(table, fused, (swapped,))


def sd3_layers(config: SD3Config) -> LayerMap:
    """Stable Diffusion 3's layers; its last block only reads the text."""
    table: Table = {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    for theirs, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        table[f"{theirs}.mlp.0"] = f"time_text_embed.{ours}.linear_1"
        table[f"{theirs}.mlp.2"] = f"time_text_embed.{ours}.linear_2"
    fused: Fused = {}
    for index in range(config.layers):
        ours = f"transformer_blocks.{index}"
        for stream, (_, end, added, names, out) in zip(("x", "context"), STREAMS, strict=True):
            theirs = f"joint_blocks.{index}.{stream}_block"
            table[f"{theirs}.adaLN_modulation.1"] = f"{ours}.norm1{end}.linear"
            table[f"{theirs}.mlp.fc1"] = f"{ours}.ff{end}.net.0.proj"
            table[f"{theirs}.mlp.fc2"] = f"{ours}.ff{end}.net.2"
            table[f"{theirs}.attn.proj"] = f"{ours}.attn.{out}"
            table[f"{theirs}.attn.ln_q"] = f"{ours}.attn.norm_{added}q"
            table[f"{theirs}.attn.ln_k"] = f"{ours}.attn.norm_{added}k"
            fused[f"{theirs}.attn.qkv"] = fused_rows(f"{ours}.attn", names, config.width)
        if index in config.dual_layers:
            theirs = f"joint_blocks.{index}.x_block.attn2"
            table[f"{theirs}.proj"] = f"{ours}.attn2.to_out.0"
            table[f"{theirs}.ln_q"] = f"{ours}.attn2.norm_q"
            table[f"{theirs}.ln_k"] = f"{ours}.attn2.norm_k"
            fused[f"{theirs}.qkv"] = fused_rows(f"{ours}.attn2", QKV, config.width)
    last = f"transformer_blocks.{config.layers - 1}.norm1_context.linear"
    return LayerMap(table, fused, ("norm_out.linear", last))


def z_image_layers(config: ZImageConfig) -> LayerMap:
    """Z-Image's layers."""
    table: Table = {
        "x_embedder": "all_x_embedder.2-1",
        "final_layer": "all_final_layer.2-1",
        "norm_final": None,  # of the code that it was made from, without effect
    }
    fused: Fused = {}
    refiners = range(config.refiner_layers)
    blocks = [f"{name}_refiner.{index}" for name in ("noise", "context") for index in refiners]
    for block in [*blocks, *(f"layers.{index}" for index in range(config.layers))]:
        attention = f"{block}.attention"
        table[f"{attention}.out"] = f"{attention}.to_out.0"
        table[f"{attention}.q_norm"] = f"{attention}.norm_q"
        table[f"{attention}.k_norm"] = f"{attention}.norm_k"
        fused[f"{attention}.qkv"] = fused_rows(attention, QKV, config.width)
    return LayerMap(table, fused)


def layers_of(config: object) -> LayerMap:
    """The layers of a transformer of any of the architectures."""
    if isinstance(config, FluxConfig):
        return flux_layers(config)
    if isinstance(config, Flux2Config):
        return flux2_layers(config)
    if isinstance(config, SD3Config):
        return sd3_layers(config)
    assert isinstance(config, ZImageConfig)
    return z_image_layers(config)
