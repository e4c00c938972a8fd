"""What a run would draw and how, told before it: without torch, and without reading a weight."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from math import prod
from pathlib import Path

from txt2img.models.tokenizer import Tokenizer
from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.history import Speed
from txt2img.request.compat import Rules, rules
from txt2img.request.prompt_syntax import schedule, split_and
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system import device_names
from txt2img.weights.checkpoint import Checkpoint, check_vae, find, open_checkpoint
from txt2img.weights.distilled import by_loras
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.vae import find_vae
from txt2img.weights.registry.hashes import cached_hash

TEXTS_MAX = 16  # of a prompt that changes, as many are counted


@dataclass(frozen=True)
class Forecast:
    """A model as it would be loaded, and how long it took before."""

    plan: Checkpoint
    path: Path
    hash: str  # empty if its files were not hashed before
    device: str
    dtypes: dict[str, str]  # by part
    speeds: Mapping[str, Speed]  # of all that was drawn before
    low: bool = False  # weights stay as they are stored; on a CPU one part at a time is in memory
    library: AdapterPaths = field(default_factory=AdapterPaths)  # where its LoRAs are

    @property
    def dtype(self) -> str:
        """The precision, as records have it."""
        return device_names.describe_dtypes(self.dtypes)

    @property
    def tokenizers(self) -> list[Tokenizer]:
        """Each text encoder's."""
        return list(self.plan.tokenizers.values())

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many weights each component has."""
        return {
            component: sum(prod(stored.shape) for stored in part.tensors.values())
            for component, part in self.plan.parts.items()
        }

    @cached_property
    def weights(self) -> int:
        """The bytes of all weights that are in memory at once."""
        sizes = [
            sum(self._size(component, stored) for stored in part.tensors.values())
            for component, part in self.plan.parts.items()
        ]
        return max(sizes) if self.low and self.device == "cpu" else sum(sizes)

    def _size(self, component: str, stored: TensorRef) -> int:
        """The bytes of a weight in memory, where large filters stay as stored on a CPU."""
        wide = prod(stored.shape) * device_names.BYTES[self.dtypes[component.split("_")[0]]]
        large = len(stored.shape) == 4 and stored.shape[2:] != (1, 1)
        return min(wide, stored.nbytes) if self.low or (large and self.device == "cpu") else wide

    def filled(self, request: Request) -> Request:
        """The request with nothing left to decide. BadRequest if it cannot be drawn, BadFile."""
        family = self.plan.family
        done = by_loras(request, self.library).filled(family.defaults)
        family.cells(done, family.vae.factor)
        return done

    def speed(self, request: Request) -> Speed | None:
        """How quick this model was before: with tokens merged alike, or else with none merged."""
        family, count = self.plan.family.name, self.parameters["unet"]
        like, plain = (
            history.key(family, count, self.device, self.dtype, merging)
            for merging in (request.token_merging, 0.0)
        )
        return self.speeds.get(like) or self.speeds.get(plain)

    def seconds(self, request: Request) -> float | None:
        """How long a filled request's picture should take; None if nothing like it was drawn."""
        speed = self.speed(request)
        return None if speed is None else history.seconds(speed, request)

    def memory(self, request: Request, batch: int) -> int:
        """The bytes that drawing `batch` of them at once should take; the weights' at least."""
        speed = self.speed(request)
        if speed is None:
            return self.weights
        more = speed.memory * history.megapixels(request) * batch
        return round(self.weights + speed.base + more)


def forecast_for(
    model: str, library: AdapterPaths, device: str | None, dtype: str | None, low: bool = False
) -> Forecast:
    """The forecast for a model. Raises as loading it does, as far as headers tell."""
    where = device_names.guess_device(device)
    dtypes = device_names.guess_dtypes(where, dtype)
    plan = open_checkpoint(model, others=library.overrides)
    check_vae(plan, library.vae)
    if library.vae is not None:
        find_vae(library.vae)
    if library.refiner is not None:
        open_checkpoint(library.refiner)
    for tokenizer in plan.tokenizers.values():
        tokenizer.embedding_ids |= {
            word: [0] * rows(path) for word, path in library.embedding_files().items()
        }
    speeds = history.read()
    return Forecast(
        plan, find(model), cached_hash(plan.weights), where, dtypes, speeds, low, library
    )


def rows(path: Path) -> int:
    """How many tokens a learnt word's file stands for. Raises BadFile."""
    tables = [stored.shape for stored in safetensors_file.header(path).tensors.values()]
    return max((shape[0] for shape in tables if len(shape) == 2), default=1)


def tokens(tokenizers: Sequence[Tokenizer], request: Request) -> dict[str, list[int]]:
    """How many tokens each chunk has, of a filled request's two prompts: at their longest."""
    found, steps = rules(request), request.steps or 1
    return {
        "prompt": longest(tokenizers, texts(request.prompt, found, steps, True), found),
        "negative": longest(tokenizers, texts(request.negative, found, steps, False), found),
    }


def texts(text: str, found: Rules, steps: int, wanted: bool) -> Iterator[str]:
    """What is read of a prompt: the parts that AND joins, each as it changes."""
    if not found.prompt_editing:
        yield text
        return
    for _, part in split_and(text, found.trailing_weight) if wanted else [(1.0, text)]:
        each = dict.fromkeys(words for _, words in schedule(part, steps))
        yield from islice(each, TEXTS_MAX)


def longest(tokenizers: Sequence[Tokenizer], said: Iterable[str], found: Rules) -> list[int]:
    """The tokens in each chunk of the text that has most, where it has most."""
    counts = [
        [len(part) for part in tokenizer.tokens_by_chunk(text, found.prompt)] if text else [0]
        for text in said
        for tokenizer in tokenizers
    ]
    return max(counts, key=sum)


def truncation_warnings(counts: dict[str, list[int]], request: Request) -> list[str]:
    """A line for each prompt that is cut to one chunk, by its `counts` of tokens."""
    if not rules(request).prompt.truncate:
        return []
    names = {"prompt": "prompt", "negative": "negative prompt"}
    return [
        f"{names[name]}: {sum(each)} tokens; all but the first {each[0]} are left out "
        f"by {request.compat}'s rules"
        for name, each in counts.items()
        if len(each) > 1
    ]
