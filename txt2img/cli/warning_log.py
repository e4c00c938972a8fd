"""Warnings of a run: each reported once, or with --strict the error that ends it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from txt2img.errors import BadRequest
from txt2img.images.metadata import a1111
from txt2img.images.resume import Item
from txt2img.request import taught_words
from txt2img.request.adapters import Lora
from txt2img.request.compat import rules
from txt2img.request.lint import prompt_warnings, truncation_warnings
from txt2img.request.request import Request

if TYPE_CHECKING:
    from txt2img.models.tokenizer import PromptTokenizer
    from txt2img.weights.checkpoint import Checkpoint

LINES_MAX = 10  # warnings that are printed


@dataclass
class WarningLog:
    """Collects the warnings about the pictures of a run."""

    strict: bool
    tokenizers: "Sequence[PromptTokenizer]"
    checkpoint: "Checkpoint | None" = None
    skips: Callable[[Request], bool] = lambda request: False  # what is not to be checked
    by_picture: dict[int, list[str]] = field(default_factory=dict)  # index → its warnings
    counts: dict[str, list[int]] = field(default_factory=dict)  # warning → [first picture, count]
    pictures: int = 0

    def checked(self, items: Iterable[Item], skip_errors: bool) -> Iterator[Item]:
        """Check each item and yield it. BadRequest, unless errors are to be skipped."""
        for item in items:
            if self.skips(item.request):
                yield item
                continue
            with suppress(*[BadRequest] if skip_errors else []):
                self.check(item, counted=False)
            yield item

    def check(self, item: Item, counted: bool = True) -> tuple[list[str], dict[str, list[int]]]:
        """A picture's warnings, and its prompts' tokens per chunk if `counted`. BadRequest.

        Counting takes a third of the time of checking, and warns only of what is truncated.
        """
        from txt2img.models.tokenizer import encoder_warnings, token_counts

        request, program = item.request, rules(item.request)
        needed = counted or program.prompt.truncate
        counts = token_counts(self.tokenizers, request, program) if needed else {}
        warnings = [*prompt_warnings(request), *truncation_warnings(counts, request, program)]
        warnings += encoder_warnings(self.tokenizers, request, program)
        if ambiguous := a1111.ambiguous(request):
            warnings.append(ambiguous)
        if untaught := self._untaught(request):
            warnings.append(untaught)
        self.pictures += 1
        if warnings:
            self.by_picture[item.index] = warnings
        for warning in warnings:
            self.counts.setdefault(warning, [item.index, 0])[1] += 1
        return warnings, counts

    def _untaught(self, request: Request) -> str:
        """What the model was never taught of a prompt; empty if it was, or if nobody knows.

        A LoRA may teach words; those that come with the default model teach none.
        """
        table = self.checkpoint.taught_words if self.checkpoint else None
        if self.checkpoint is None or table is None or _teaches(request.loras):
            return ""
        return taught_words.warning(
            table, request, self.checkpoint.name, lambda: self._larger_model
        )

    @cached_property
    def _larger_model(self) -> str:
        return larger_model()

    def report(
        self, other: Sequence[str], write: Callable[[str], None], notes: Sequence[str] = ()
    ) -> None:
        """Write the notes, then `other` and the pictures' warnings. BadRequest with --strict."""
        for note in notes:
            write(note)
        warnings = [*other, *self.lines()]
        count = len(warnings)
        if not count:
            return
        if not self.strict or count > 1:
            for warning in warnings[:LINES_MAX]:
                write(f"Note: {warning}")
        if self.strict:
            rest = f" (and {count - 1:,} more warnings)" if count > 1 else ""
            raise BadRequest(f"--strict: {warnings[0]}{rest}")
        if count > LINES_MAX:
            hidden = count - LINES_MAX
            write(f"Note: and {hidden:,} more warnings; --dry-run --json shows each picture's")

    def lines(self) -> Iterator[str]:
        """The pictures' warnings, each once."""
        for warning, (index, count) in self.counts.items():
            which = f"picture {index}: " if self.pictures > 1 else ""
            also = f" (and in {count - 1:,} more)" if count > 1 else ""
            yield f"{which}{warning}{also}"


def _teaches(loras: Sequence[Lora]) -> bool:
    """Whether any LoRA may teach words: one that does not come with the default model."""
    from txt2img.weights.registry.find import SHIPPED

    return any(not (SHIPPED / f"{lora.name}.safetensors").exists() for lora in loras)


def larger_model() -> str:
    """How to get a model that knows more words than one with a table of them."""
    from txt2img.weights.registry.aliases import ALIASES
    from txt2img.weights.registry.find import find_pulled, hub_ref

    for name, alias in ALIASES.items():
        if "lora" not in name and (ref := hub_ref(name)) and find_pulled(ref):
            return f"--model {name} ({alias.id}) knows more"
    return "txt2img models pull sd15, then --model sd15, knows more"
