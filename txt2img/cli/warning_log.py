"""The warnings of a run, all in one place: told once each, or with --strict its end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from txt2img.errors import BadRequest
from txt2img.images.metadata import a1111
from txt2img.images.resume import Item
from txt2img.request.lint import traps

if TYPE_CHECKING:
    from txt2img.models.tokenizer import Tokenizer

LINES_MAX = 10  # as many are told
KEPT_MAX = 1000  # as many are told apart


@dataclass
class Care:
    """What is worth a warning in a run's requests, and what else is."""

    strict: bool
    tokenizers: "Sequence[Tokenizer]"
    found: dict[str, list[int]] = field(default_factory=dict)  # line → first picture, how many
    others: int = 0  # beyond KEPT_MAX
    pictures: int = 0

    def over(self, items: Iterable[Item], lenient: bool) -> Iterator[Item]:
        """The same items, each looked at. BadRequest, unless drawing it may fail."""
        for item in items:
            with suppress(*[BadRequest] if lenient else []):
                self.look(item)
            yield item

    def look(self, item: Item) -> tuple[list[str], dict[str, list[int]]]:
        """The warnings of one picture and its prompts' tokens by chunk. BadRequest."""
        from txt2img.pipeline.estimates.forecast import tokens, truncation_warnings

        request = item.request
        counts = tokens(self.tokenizers, request)
        lines = [*traps(request), *truncation_warnings(counts, request)]
        lines += [ambiguous] if (ambiguous := a1111.ambiguous(request)) else []
        self.pictures += 1
        for line in lines:
            if line in self.found:
                self.found[line][1] += 1
            elif len(self.found) < KEPT_MAX:
                self.found[line] = [item.index, 1]
            else:
                self.others += 1
        return lines, counts

    def settle(
        self, more: Sequence[str], tell: Callable[[str], None], remarks: Sequence[str] = ()
    ) -> None:
        """Tell remarks, `more` warnings, those of the pictures. BadRequest if they are errors."""
        for line in remarks:
            tell(line)
        lines = [*more, *self.lines()]
        count = len(lines) + self.others
        if not count:
            return
        hidden = count - LINES_MAX
        if not self.strict or count > 1:
            for line in lines[:LINES_MAX]:
                tell(f"Note: {line}")
        if not self.strict and hidden > 0:
            tell(f"Note: and {hidden:,} warnings more; --dry-run --json shows each picture's")
        if self.strict:
            rest = f" (and {count - 1:,} warnings more)" if count > 1 else ""
            raise BadRequest(f"--strict: {lines[0]}{rest}")

    def lines(self) -> Iterator[str]:
        """The pictures' warnings, each once."""
        for line, (index, count) in self.found.items():
            which = f"picture {index}: " if self.pictures > 1 else ""
            also = f" (and in {count - 1:,} more)" if count > 1 else ""
            yield f"{which}{line}{also}"
