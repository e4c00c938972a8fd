"""Warnings of a run: each reported once, or with --strict the error that ends it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from txt2img.errors import BadRequest
from txt2img.images.metadata import a1111
from txt2img.images.resume import Item
from txt2img.request.compat import rules
from txt2img.request.lint import prompt_warnings, truncation_warnings

if TYPE_CHECKING:
    from txt2img.models.tokenizer import Tokenizer

LINES_MAX = 10  # warnings that are printed


@dataclass
class WarningLog:
    """Collects the warnings about the pictures of a run."""

    strict: bool
    tokenizers: "Sequence[Tokenizer]"
    counts: dict[str, list[int]] = field(default_factory=dict)  # warning → [first picture, count]
    pictures: int = 0

    def checked(self, items: Iterable[Item], skip_errors: bool) -> Iterator[Item]:
        """Check each item and yield it. BadRequest, unless errors are to be skipped."""
        for item in items:
            with suppress(*[BadRequest] if skip_errors else []):
                self.check(item)
            yield item

    def check(self, item: Item) -> tuple[list[str], dict[str, list[int]]]:
        """A picture's warnings, and its prompts' tokens per chunk. BadRequest."""
        from txt2img.models.tokenizer import token_counts

        request, program = item.request, rules(item.request)
        counts = token_counts(self.tokenizers, request, program)
        warnings = [*prompt_warnings(request), *truncation_warnings(counts, request, program)]
        if ambiguous := a1111.ambiguous(request):
            warnings.append(ambiguous)
        self.pictures += 1
        for warning in warnings:
            self.counts.setdefault(warning, [item.index, 0])[1] += 1
        return warnings, counts

    def report(
        self, more: Sequence[str], write: Callable[[str], None], notes: Sequence[str] = ()
    ) -> None:
        """Write the notes, then `more` and the pictures' warnings. BadRequest with --strict."""
        for note in notes:
            write(note)
        warnings = [*more, *self.lines()]
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
