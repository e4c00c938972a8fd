"""Plans which weights of a network stay in memory while it computes, and which come and go.

Blocks come for their use, one ahead; where two of them are too much, single layers do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

ALIGNMENT = 64  # bytes, of a weight in the memory that blocks take turns in
SLOTS = 2  # blocks in memory at once: the one that computes, and the next
TABLES = re.compile(r"(^|\.)(embed_tokens|token_embedding)\.weight$")  # of which few rows are used
# Weights of more than one dimension that are read without a call of their layer.
ALWAYS_THERE = re.compile(r"(^|\.)(position_embedding|relative_attention_bias|pos_embed)\b")


@dataclass(frozen=True)
class Weight:
    """A weight's bytes in memory, and its number of dimensions."""

    size: int
    dimensions: int


@dataclass(frozen=True)
class StreamPlan:
    """The blocks of a network by name, each with its weights' names, and what stays in memory."""

    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # all that may come and go
    resident: frozenset[str] = frozenset()  # blocks that stay once they came
    tables: tuple[str, ...] = ()  # weights of which only the rows in use are read
    slot: int = 0  # bytes of the largest block that goes again
    least: int = 0  # bytes of weights that there must be room for
    most: int = 0  # bytes of weights in memory at once

    @property
    def streamed(self) -> tuple[str, ...]:
        """The blocks that come for each use."""
        return tuple(name for name in self.blocks if name not in self.resident)


def plan_stream(
    weights: Mapping[str, Weight], lists: Sequence[str], room: int | None = None
) -> StreamPlan:
    """Plan for a network whose blocks are the items of `lists`, with `room` bytes for weights.

    Without `room` no block stays. Where there is too little of it for two blocks and what is in
    none, single layers take the blocks' place; `least` is above `room` if that is too much, too.
    """
    tables = tuple(name for name in weights if TABLES.search(name))
    others = {name: one for name, one in weights.items() if name not in tables}
    by_block = _plan(others, _blocks(others, lists), room)
    if not by_block.blocks or (room is not None and by_block.least > room):
        by_layer = _plan(others, _layers(others), room)
        if by_layer.least < by_block.least:
            return replace(by_layer, tables=tables)
    return replace(by_block, tables=tables)


def _blocks(weights: Mapping[str, Weight], lists: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The outermost items of lists of these names, with their weights."""
    if not lists:
        return {}
    item = re.compile(rf"(?:.*?\.)??(?:{'|'.join(map(re.escape, lists))})\.\d+(?=\.)")
    found: dict[str, list[str]] = {}
    for name in weights:
        if match := item.match(name):
            found.setdefault(match[0], []).append(name)
    return {block: tuple(names) for block, names in found.items()}


def _layers(weights: Mapping[str, Weight]) -> dict[str, tuple[str, ...]]:
    """The layers that have a matrix or a filter."""
    large = {
        name.rpartition(".")[0]
        for name, one in weights.items()
        if one.dimensions > 1 and not ALWAYS_THERE.search(name)
    } - {""}
    whole = sorted(large)  # whose parts come right behind it
    large -= {one for one, after in pairwise(whole) if after.startswith(f"{one}.")}
    found: dict[str, list[str]] = {}
    for name in weights:
        if (layer := name.rpartition(".")[0]) in large:
            found.setdefault(layer, []).append(name)
    return {layer: tuple(names) for layer, names in found.items()}


def _plan(
    weights: Mapping[str, Weight], blocks: Mapping[str, tuple[str, ...]], room: int | None
) -> StreamPlan:
    """The plan for these blocks; those that stay are spread evenly over the network.

    Between two that come there is so as much time as can be to read the next.
    """
    sizes = {block: sum(_aligned(weights[n].size) for n in blocks[block]) for block in blocks}
    inside = {name for names in blocks.values() for name in names}
    rest = sum(one.size for name, one in weights.items() if name not in inside)
    total, slot = sum(sizes.values()), max(sizes.values(), default=0)
    least = rest + min(SLOTS * slot, total)
    resident: set[str] = set()
    if room is not None and rest + total <= room:
        return StreamPlan(blocks, frozenset(blocks), (), 0, least, rest + total)
    spare = 0 if room is None else max(room - least, 0)
    share, due, kept = spare / max(total, 1), 0.0, 0
    for block, size in sizes.items():
        due += size * share
        if size <= due and kept + size <= spare:
            resident.add(block)
            due, kept = due - size, kept + size
    slot = max((size for block, size in sizes.items() if block not in resident), default=0)
    return StreamPlan(blocks, frozenset(resident), (), slot, least, rest + kept + SLOTS * slot)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
