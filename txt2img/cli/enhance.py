"""--enhance: a language model rewrites the prompts of a batch before anything is drawn."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from txt2img.cli.dry_run import filled_requests
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.options.enhance import EnhanceSettings
from txt2img.cli.requests import Batch
from txt2img.cli.run_options import RunSettings
from txt2img.cli.terminal.console import Bar, log
from txt2img.errors import EnhanceFailed
from txt2img.images.resume import Item, ResumeIndex, items
from txt2img.request.enhance import (
    FOR_CLIP,
    FOR_PROSE,
    Ask,
    Enhancer,
    Instructions,
    for_taught_words,
    rewrite,
)
from txt2img.request.request import Request
from txt2img.system import launcher
from txt2img.system.chat_endpoint import SECONDS, ChatEndpoint, is_url, parse_endpoint
from txt2img.system.files import expand_user
from txt2img.system.text import escape

if TYPE_CHECKING:
    from txt2img.pipeline.estimates.forecast import Forecast
    from txt2img.weights.checkpoint import Checkpoint
    from txt2img.weights.language_model import LanguageModel

Key = tuple[str, int]  # a prompt as it was written, and the language model's seed
FAILURES_MAX = 3  # in a row; after them a server is not asked any more
UNENCRYPTED = "Note: the key of --enhance travels unencrypted; use https for another machine"


@dataclass
class Enhancement:
    """The rewriting of a batch's prompts, and what came of it."""

    settings: EnhanceSettings
    instructions: Instructions
    model: "ChatEndpoint | LanguageModel"
    rewritten: dict[Key, str] = field(default_factory=dict)
    failed: dict[Key, str] = field(default_factory=dict)  # why

    def key(self, request: Request) -> Key:
        """What the rewritten prompt of a picture depends on."""
        seed = self.settings.seed
        return request.written or request.prompt, (request.seed or 0) if seed is None else seed

    def enhancer(self, seed: int) -> Enhancer:
        """The language model, as a record names it."""
        name, digest = escape(self.model.name)[:255], self.model.hash
        return Enhancer(name, digest, self.instructions.hash, seed, self.settings.temperature)

    def apply(self, request: Request) -> Request:
        """A picture's request with its rewritten prompt, or as it was written if that failed."""
        written, seed = key = self.key(request)
        if key in self.failed:
            return request.changed(prompt=written, written="", enhancer=None)
        prompt = self.rewritten.get(key, written)
        return request.changed(prompt=prompt, written=written, enhancer=self.enhancer(seed))

    def is_unwritten(self, request: Request) -> bool:
        """Whether a picture's prompt is not rewritten here: it is finished, or another draws it."""
        key = self.key(request)
        return key not in self.rewritten and key not in self.failed

    def run(self, prompts: Mapping[Key, Iterable[str]], device: DeviceOptions, bar: Bar) -> None:
        """Rewrite prompts, given with the words of their embeddings, one after the other."""
        with asking(self.model, device, bar) as ask:
            for done, (key, learnt) in enumerate(prompts.items()):
                bar.advance("rewriting", done, len(prompts), f"{done}/{len(prompts)}", key[0])
                try:
                    enhancer = self.enhancer(key[1])
                    self.rewritten[key] = rewrite(key[0], self.instructions, enhancer, learnt, ask)
                except EnhanceFailed as error:
                    self.failed[key] = str(error)

    def warnings(self) -> Iterator[str]:
        """A line for each reason why prompts are drawn as they were written."""
        total = len(self.failed) + len(self.rewritten)
        for reason, count in Counter(self.failed.values()).items():
            which = f"{count:,} of {total:,} prompts stay" if total > 1 else "the prompt stays"
            yield f"--enhance: {reason}; {which} as written"


def enhancement(settings: EnhanceSettings, checkpoint: "Checkpoint") -> Enhancement:
    """The rewriting of prompts for a model. Txt2imgError for what cannot rewrite."""
    if is_url(settings.model):
        model = parse_endpoint(settings.model, settings.key, settings.seconds or SECONDS)
        if settings.key and not model.is_local and model.url.startswith("http:"):
            log(UNENCRYPTED)
        return Enhancement(settings, settings.instructions or instructions_for(checkpoint), model)
    from txt2img.weights.language_model import LanguageModel

    folder = LanguageModel(expand_user(settings.model))
    return Enhancement(settings, settings.instructions or instructions_for(checkpoint), folder)


def instructions_for(checkpoint: "Checkpoint") -> Instructions:
    """The instructions that suit the text encoders of a model, or the words it was taught."""
    if (table := checkpoint.taught_words) is not None:
        return for_taught_words(table.things, table.others)
    family = checkpoint.family
    return FOR_CLIP if len(family.clip_texts) == len(family.texts) else FOR_PROSE


@contextmanager
def asking(model: "ChatEndpoint | LanguageModel", device: DeviceOptions, bar: Bar) -> Iterator[Ask]:
    """A function that asks a language model, which is in memory only within this context.

    After some failures in a row it fails at once: a dead server costs minutes for each prompt.
    """
    failures: list[EnhanceFailed] = []

    def ask(instructions: str, prompt: str, seed: int, temperature: float) -> str:
        if len(failures) >= FAILURES_MAX:
            raise failures[-1]
        try:
            answer = model.answer(instructions, prompt, seed, temperature)
        except EnhanceFailed as error:
            failures.append(error)
            raise
        failures.clear()
        return answer

    if isinstance(model, ChatEndpoint):
        yield ask
        return
    bar.advance("loading the language model", 0, 1, "")
    model.load(device.choose_device().torch_device)
    try:
        yield ask
    finally:
        model.free()


def enhance(batch: Batch, asked: EnhanceSettings, settings: RunSettings, bar: Bar) -> None:
    """Rewrite the prompts of the pictures that this process will draw. Txt2imgError."""
    from txt2img.pipeline.estimates.forecast import forecast_for

    settings.target.check_name_free()
    device = settings.device
    forecast = forecast_for(
        batch.model, batch.library, device.device, device.dtype, device.low_memory
    )
    done = enhancement(asked, forecast.checkpoint)
    batch.rewritten, batch.is_unwritten = done.apply, done.is_unwritten
    prompts: dict[Key, list[str]] = {}
    for item in left_to_draw(batch, forecast, settings):
        words = [embedding.token for embedding in item.request.embeddings]
        prompts.setdefault(done.key(item.request), words)
    done.run(prompts, device, bar)
    batch.warnings += done.warnings()
    if len(done.rewritten) == 1:
        batch.notes += [f"prompt: {text}" for text in done.rewritten.values()]


def left_to_draw(batch: Batch, forecast: "Forecast", settings: RunSettings) -> Iterator[Item]:
    """The pictures of this process that --resume does not find finished; all with --dry-run."""
    scratch = replace(batch, errors={}, notes=[], warnings=[])  # told when they are drawn
    resume = settings.batch.resume and settings.target.folder.is_dir()
    model = forecast.origin if resume else None
    pictures = items(filled_requests(scratch, forecast), settings.target, model)
    group = launcher.ProcessGroup() if settings.batch.dry_run else launcher.current()
    mine = group.shard(settings.batch.shard_items(pictures))
    with nullcontext() if model is None else ResumeIndex(settings.target, model) as index:
        yield from scratch.pending(mine, index)


def enhance_texts(
    prompts: Sequence[str],
    asked: EnhanceSettings,
    checkpoint: "Checkpoint",
    device: DeviceOptions,
    bar: Bar,
) -> Iterator[str | EnhanceFailed]:
    """Rewrite texts for a model; yield each, or why that failed. Txt2imgError."""
    done = enhancement(asked, checkpoint)
    enhancer = done.enhancer(asked.seed or 0)
    with asking(done.model, device, bar) as ask:
        for number, prompt in enumerate(prompts):
            bar.advance("rewriting", number, len(prompts), f"{number}/{len(prompts)}", prompt)
            try:
                yield rewrite(prompt, done.instructions, enhancer, (), ask)
            except EnhanceFailed as error:
                yield error
