"""Estimates of the most memory of a run, and of what comes block by block; needs no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from txt2img.errors import BadRequest
from txt2img.models.configs import NetworkConfig, TextEncoderConfig, TinyConfig, VAEConfig
from txt2img.pipeline.estimates import activations
from txt2img.request.hires import drawn_size
from txt2img.request.request import Request
from txt2img.system import resources
from txt2img.system.stream_plan import StreamPlan, Weight, plan_stream
from txt2img.system.text import format_size
from txt2img.weights.families import Family

# Bytes of a process on a CPU that has only imported what draws, and of a card's context.
LIBRARIES = {"cpu": 300_000_000, "transformers": 450_000_000}
LIMITED_TILE = 128  # pixels a side, of the smallest tile that passes the VAE
AnyConfig = NetworkConfig | TextEncoderConfig | VAEConfig | TinyConfig


@dataclass(frozen=True)
class Part:
    """A component of a model: its weights in memory, and what computing with them takes."""

    name: str  # a component's: unet, transformer, vae, text_encoder …
    lists: Sequence[str]  # whose items are its blocks
    weights: Mapping[str, Weight]
    needed: int  # bytes besides
    least_needed: int  # where memory is short

    @property
    def size(self) -> int:
        """The bytes of all its weights."""
        return sum(weight.size for weight in self.weights.values())

    def plan(self, room: int | None) -> StreamPlan:
        """What stays and what comes, in `room` bytes for all."""
        return plan_stream(self.weights, self.lists, None if room is None else room - self.needed)


@dataclass(frozen=True)
class Peak:
    """How the parts of a model share a device's memory."""

    parts: Sequence[Part]
    mode: str  # of resources.MODES, but for auto
    line: str  # about the mode, for the user
    base: int  # bytes of the libraries
    room: int | None  # bytes for a part at a time, if they are bounded
    limit: int | None = None  # of --max-memory

    @property
    def bytes(self) -> int:
        """The estimated peak."""
        if self.mode == "none":
            weights = sum(part.size for part in self.parts)
            return self.base + weights + max(part.needed for part in self.parts)
        return self.base + max(self._of(part) for part in self.parts)

    @property
    def least(self) -> int:
        """The least that --max-memory may be."""
        parts = [plan_stream(p.weights, p.lists, 0).least + p.least_needed for p in self.parts]
        return self.base + resources.MARGIN + max(parts)

    def check(self) -> None:
        """Raise BadRequest for a limit that is too little, as far as estimates tell."""
        if self.limit is not None and self.limit < self.least:
            raise BadRequest(
                f"--max-memory {format_size(self.limit)} is too little for this model and size, "
                f"even layer by layer; the least that works is about {format_size(self.least)}"
            )

    @property
    def lines(self) -> Iterator[str]:
        """A line about the mode, unless all stays in memory, and one for each streamed part."""
        if self.line:
            yield self.line
        for part in self.parts if self.mode != "none" else ():
            plan = self._plan(part)
            if plan is not None and plan.streamed:
                count, stay = len(plan.streamed), len(plan.resident)
                each = format_size(plan.slot)
                yield (
                    f"{part.name}: {count} of {count + stay} blocks come for each use, of at most "
                    f"{each}"
                )

    def _plan(self, part: Part) -> StreamPlan | None:
        """The plan of a part; None if it comes as a whole."""
        always = self.mode == "sequential" and part.name in ("unet", "transformer")
        if not part.lists or not (always or self.room is not None):
            return None
        if not always and self.room is not None and part.size + part.needed <= self.room:
            return None
        return part.plan(self.room)

    def _of(self, part: Part) -> int:
        plan = self._plan(part)
        return part.needed + (part.size if plan is None else plan.most)


def parts_of(
    family: Family,
    weights: Mapping[str, Mapping[str, Weight]],
    itemsizes: Mapping[str, int],
    request: Request,
    batch: int,
) -> list[Part]:
    """The parts of a model, by their weights and the bytes of a number in them."""
    texts = dict(zip([n for n in weights if n.startswith("text_")], family.texts, strict=False))
    width, height = drawn_size(request)
    cells, rows = width * height // family.vae.factor**2, batch * (1 if request.cfg == 1 else 2)
    found = []
    for name, tensors in weights.items():
        item = itemsizes[name]
        config: AnyConfig = family.network
        if name == "vae":
            config = family.vae
            whole = activations.of_vae(family.vae, width * height, item)
            least = activations.of_vae(family.vae, LIMITED_TILE**2, item)
        elif name in texts:
            config = texts[name]
            whole = least = activations.of_texts([texts[name]], item)
        else:
            whole = least = activations.of_network(family.network, cells, rows, item)
        # A VAE in half precision may have to be widened while it is in use.
        lists = () if name == "vae" and item != 4 else config.block_lists
        found.append(Part(name, lists, tensors, whole, least))
    return found


def peak_of(
    parts: Sequence[Part], device: str, offload: str, limit: int | None, heavy: bool
) -> Peak:
    """The peak on a device with --offload and --max-memory; a `heavy` one imports transformers."""
    base = LIBRARIES["transformers" if heavy else "cpu"] if device == "cpu" else 0
    free = resources.available() if device == "cpu" else None
    if limit is not None:
        free = limit - base if free is None else min(free, limit - base)
    sizes = {part.name: part.size for part in parts}
    mode, line = resources.choose_mode(offload, device, sizes, free, limit)
    bounded = offload == "auto" or limit is not None
    room = free - resources.MARGIN if bounded and free is not None else None
    if limit is not None and room is not None:
        parts = [part if part.name != "vae" else _fitted(part, room) for part in parts]
    return Peak(parts, mode, line, base, room, limit)


def _fitted(vae: Part, room: int) -> Part:
    """The VAE with tiles that fit into `room` with its weights."""
    needed = max(vae.least_needed, min(vae.needed, room - vae.size))
    return Part(vae.name, vae.lists, vae.weights, needed, vae.least_needed)
