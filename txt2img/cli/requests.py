"""Requests of a command line: from its options, standard input, a prompt file, or pictures."""

import os
import re
import stat
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.enhance import CONFIGURED
from txt2img.cli.options.input import read_stdin
from txt2img.cli.provenance import request_of, require_model, with_pictures
from txt2img.cli.registry import MODEL_VERBS, NAMES, OTHER_VERBS
from txt2img.cli.run_options import RunOptions
from txt2img.errors import BadFile, BadRequest, ModelNotFound, Txt2imgError
from txt2img.images import image_file
from txt2img.images.image_folder import ImageFolders, pictures_at
from txt2img.images.input_image import resolve_images
from txt2img.images.record import Origin
from txt2img.images.resume import Item, ResumeIndex
from txt2img.request.fields import FIELDS
from txt2img.request.input_image import STDIN, ImagePaths
from txt2img.request.prompt_file import read_prompts
from txt2img.request.prompt_line import LONG
from txt2img.request.request import PROMPT_MAX, Request
from txt2img.request.resolve import AdapterPaths
from txt2img.request.sweep import Sweep, axis
from txt2img.request.wildcards import Wildcards
from txt2img.system import launcher
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.images.image_folder import ImageFolders


# Options that change nothing without another one, by its field.
NEEDED_BY: Mapping[str, tuple[str, ...]] = {
    "image": ("strength", "resize", "mask_blur", "mask_invert", "inpaint_fill", "only_masked"),
    "controls": ("preprocess", "control_mode"),
    "ip_adapters": ("ip_masks",),
}
# What a picture's prompt was made from, which another prompt was not.
MADE_FROM = {"template": "", "written": "", "enhancer": None}
SEEDS_SHOWN = 8  # random ones, in the note on them
SWITCHES = ("yes", "no", "true", "false", "on", "off")
CURLY = "“”„‟«»\u2018\u201a"
COMMANDS = {
    **{verb: f"txt2img models {verb}" for verb in MODEL_VERBS},
    **{word: f"txt2img models {verb}" for word, verb in OTHER_VERBS.items() if verb == "pull"},
    **dict.fromkeys(("/help", "/h", "/?", "?", "usage", "man"), "txt2img --help"),
    **dict.fromkeys(("server", "webui", "gui", "api"), "txt2img serve"),
    "version": "txt2img --version",
}
_OPTION = re.compile(r"(?:^|(?<=\s))--[A-Za-z][\w-]*(?:[=\s]\S+)?")
_NAMES = "|".join(option[2:] for option in LONG)
_DASH = re.compile(rf"(?:^|(?<=\s))[–—]{{1,2}}(?:{_NAMES})\b(?:\s\S+)?")  # typed as two hyphens


@dataclass
class Batch:
    """The requests of a command line, the files they name, and what to tell the user of them."""

    library: AdapterPaths
    skip_errors: bool  # keep what cannot be drawn in `errors` instead of raising it
    requests: Iterable[Request] = ()  # with seeds; can be iterated repeatedly
    model: str = ""
    origins: list[Origin] = field(default_factory=list)  # of the pictures to draw again
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wildcards: Wildcards | None = None
    all_choices: bool = False  # of the wildcards, not one by the seed
    combinations: int = 0  # pictures that all choices make
    image_folders: "ImageFolders | None" = None
    sweep: Sweep | None = None
    rewritten: Callable[[Request], Request] | None = None  # puts rewritten prompts in
    is_unwritten: Callable[[Request], bool] = lambda request: False  # not rewritten here
    errors: dict[Hashable, Txt2imgError] = field(default_factory=dict)
    on_stdin: str = ""  # what was read from standard input
    several: bool = False
    done: int = 0  # pictures that --resume found finished

    def pictures(self) -> Iterator[Request]:
        """One request per picture, with wildcards and file names resolved. BadRequest, BadFile."""
        for number, request in enumerate(self.requests):
            for i in range(request.count):
                try:
                    for chosen in self.with_choices(request.nth(i)):
                        yield self._resolved(chosen)
                except (BadRequest, BadFile, ModelNotFound) as error:
                    if not self.skip_errors:
                        raise
                    self.errors["choices", number, i] = error

    def with_choices(self, request: Request) -> list[Request]:
        """The request with its wildcards filled in, once or (--all) in every way. BadRequest."""
        if self.wildcards is None:
            return [request]
        every = self.all_choices
        return self.wildcards.combinations(request) if every else [self.wildcards.resolve(request)]

    def _resolved(self, request: Request) -> Request:
        """The request with the files that it names, and its rewritten prompt. Txt2imgError."""
        resolved = self.library.resolve(request)
        if resolved.controls or resolved.ip_adapters or resolved.preprocess:
            from txt2img.weights.control_file import find_controls

            resolved = find_controls(resolved, self.library)
        if resolved.has_input:
            resolved = resolve_images(resolved, self.library.images)
        return resolved if self.rewritten is None else self.rewritten(resolved)

    def pending(self, items: Iterable[Item], index: ResumeIndex | None) -> Iterator[Item]:
        """The items that are not finished yet."""
        total = 0
        for item in items:
            total += 1
            if index is not None and index.done(item):
                self.done += 1
            else:
                yield item
        if self.done:
            self.notes.append(f"{self.done} of {total} pictures are there already")


def from_arguments(
    prompts: Sequence[str],
    prompts_file: str | None,
    picture: Path | None,
    options: RunOptions,
    is_named: bool = False,
) -> Batch:
    """The requests of a prompt, a prompt file or a picture. BadRequest, BadFile.

    `is_named`: the command was named, so a prompt that looks like one is meant.
    """
    if len(prompts) > 1:
        takes = "; --enhance takes a URL with http://, or a folder"
        hint = takes if options.enhance.enhance == CONFIGURED else ""
        raise BadRequest(too_many_prompts(prompts) + hint)
    if prompts and prompts_file is not None:
        raise BadRequest("a prompt and --prompts; give one of them")
    lines = [line for prompt in prompts for line in warnings(prompt, is_named)]
    nothing = not prompts and prompts_file is None and picture is None
    pipes_prompt = options.input.image != STDIN and has_piped_input()
    if from_stdin := prompts == [STDIN] or (nothing and pipes_prompt):
        prompts, nothing = [read_prompt()], False
    if nothing:
        raise BadRequest('no prompt; try txt2img "red apple, 3d emoji", or txt2img --help')
    fields, base = options.request_fields(), Request("")
    batch = Batch(options.library(), options.batch.policy.skip)
    batch.on_stdin = "the prompt" if from_stdin else ""
    if picture:
        base, batch.warnings, origin = from_picture(picture, fields, batch.library.images)
        batch.library.images.beside.append(picture.parent)
        batch.origins.append(origin)
    batch.warnings += lines
    prompt = {"prompt": prompts[0], **MADE_FROM} if prompts else {}
    base = Request.from_json({**base.to_json(), **fields, **prompt})
    base, batch.model = base.changed(**MADE_FROM) if prompts_file is not None else base, base.model
    requests = [base] if prompts_file is None else _read_file(batch, prompts_file, base)
    batch.requests, random_seeds = _with_seeds(requests)
    return _complete(batch, options.batch, random_seeds)


def _read_file(batch: Batch, path: str, base: Request) -> list[Request]:
    """The requests of a prompt file; the batch gets what else comes of it. BadRequest, BadFile."""
    file = read_prompts(path, sys.stdin.buffer, base, batch.skip_errors)
    batch.errors, batch.notes = file.errors, file.notes
    batch.library.images.embedded |= file.pictures
    if path == STDIN:
        batch.on_stdin = "the prompts"
    else:
        batch.library.images.beside.append(Path(path).parent)
    return file.requests


def _with_seeds(requests: Sequence[Request]) -> tuple[list[Request], list[int]]:
    """The requests, those without a seed with a random one each, and the random seeds.

    The seeds follow from the first one, which all processes of a launch share.
    """
    blank = next((request for request in requests if request.seed is None), None)
    if blank is None:
        return list(requests), []
    first = blank.seeded().seed
    assert first is not None
    if launcher.current().can_rendezvous:
        from txt2img.system.device.rendezvous import broadcast

        first = broadcast(first)
    random, seeded, seeds = Random(first), list[Request](), list[int]()
    for request in requests:
        if request.seed is None:
            seeds.append(random.getrandbits(32) if seeds else first)
            request = request.changed(seed=seeds[-1])
        seeded.append(request)
    return seeded, seeds


def from_pictures(pictures: Sequence[Path], options: RunOptions) -> Batch:
    """The requests in pictures, with the options in place of their values. BadRequest, BadFile."""
    fields = options.request_fields()
    batch = Batch(options.library(), options.batch.policy.skip)
    requests: list[Request] = []
    for picture in pictures:
        recorded, lines, origin = from_picture(picture, fields, batch.library.images)
        batch.library.images.beside.append(picture.parent)
        base = Request.from_json({**recorded.to_json(), **fields})
        request = base.seeded()
        name = shown(picture)
        which = f" of {name}" if len(pictures) > 1 else ""
        if base.seed is None:
            if launcher.current().world > 1:
                raise BadRequest(f"{name} records no seed: give --seed to a launch")
            batch.notes.append(f"seed {request.seed}{which}")
        batch.warnings += [f"{name}: {line}" if which else line for line in lines]
        batch.origins.append(origin)
        requests.append(request)
    if len({request.model for request in requests}) > 1:
        raise BadRequest("the pictures are of several models; give --model, or replay each model's")
    batch.requests, batch.model = requests, requests[0].model
    return _complete(batch, options.batch)


def from_picture(
    picture: Path, fields: Mapping[str, object], images: ImagePaths
) -> tuple[Request, list[str], Origin]:
    """A picture's request, what is wrong with its record, and its origin. BadFile, BadRequest."""
    content = image_file.read(picture)
    from txt2img.weights.registry.find import find_by_hash

    model = fields.get("model")
    request, notes, origin = request_of(picture, content), list(content.notes), content.origin
    if model is None and request.model != "default" and (match := find_by_hash(origin.hash)):
        name, file = match
        notes.append(f"its model is {shown(name)} here, by its hash {origin.hash}")
        request = replace(request, model=str(file))
        origin = replace(origin, hash="")  # A1111's first hash is not the one to compare
    else:
        require_model(picture, request, None if model is None else str(model))
    request = with_pictures(picture, request, fields, images)
    return replace(request, count=1), notes, origin


def _expand(batch: Batch, options: BatchOptions) -> None:
    """Put the pictures of folders and the points of the sweep into the requests. BadRequest."""
    swept = [axis(text).field for text in options.sweep or ()]
    batch.notes += without_effect(batch.requests, swept)
    if any(request.has_input for request in batch.requests) or "image" in swept:
        read_stdin(batch.requests, batch.library.images, batch.on_stdin)
        errors = batch.errors if batch.skip_errors else None
        if "image" in swept:  # each with its mask of a folder of masks
            sweep = Sweep(batch.requests, options.sweep or (), options.sweep_zip, pictures_at)
            batch.sweep, batch.requests = sweep, sweep
        folders = ImageFolders(batch.requests, batch.library.images, errors)
        batch.requests = batch.image_folders = folders
    if options.sweep and batch.sweep is None:
        batch.requests = batch.sweep = Sweep(batch.requests, options.sweep, options.sweep_zip)


def without_effect(requests: Iterable[Request], swept: Sequence[str]) -> Iterator[str]:
    """A note for each option that changes nothing, since the one that it goes with is missing."""
    for needed, names in NEEDED_BY.items():
        if needed not in swept and not any(getattr(request, needed) for request in requests):
            for field in (FIELDS[name] for name in names):
                if any(getattr(request, field.name) != field.default for request in requests):
                    yield f"--{field.label} changes nothing without --{FIELDS[needed].label}"


def _complete(batch: Batch, options: BatchOptions, random_seeds: Sequence[int] = ()) -> Batch:
    """Add wildcards and the sweep, note random seeds, check the first picture. BadRequest."""
    if options.wildcards is not None:
        batch.wildcards, batch.all_choices = Wildcards(options.wildcards), options.all_choices
    _expand(batch, options)
    count, is_random, known = 0, False, set(random_seeds)
    for request in batch.requests:
        count += min(request.count, 2)
        is_random = is_random or request.seed in known
    if batch.all_choices:
        batch.combinations = _count_combinations(batch)
        batch.notes.append(f"--all: {batch.combinations:,} pictures, of every choice")
    batch.several = max(count, batch.combinations) > 1
    if is_random:
        launch = launcher.current()
        alone = launch.world > 1 and not launch.can_rendezvous
        for needs_seed, option in (
            (options.resume, "--resume"),
            (options.shard, "--shard"),
            (alone, "a launch"),
        ):
            if needs_seed:
                raise BadRequest(f"{option} needs a known seed; give --seed, as in the first run")
        listed = ", ".join(str(seed) for seed in random_seeds[:SEEDS_SHOWN])
        ellipsis = "" if len(random_seeds) <= SEEDS_SHOWN else ", …"
        each = "seed" if len(random_seeds) == 1 else "a random seed for each line:"
        batch.notes.append(f"{each} {listed}{ellipsis}")
    if count:
        next(chain(batch.pictures(), [None]))  # raises what is wrong with the first one's wildcards
    return batch


def _count_combinations(batch: Batch) -> int:
    """The pictures that all choices make. BadRequest, BadFile, unless errors are skipped."""
    count = 0
    for request in batch.requests:
        with suppress(*[BadRequest, BadFile] if batch.skip_errors else []):
            count += request.count * len(batch.with_choices(request.nth(0)))
    return count


def has_piped_input() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_prompt() -> str:
    """The prompt that standard input is. BadFile, BadRequest."""
    content = sys.stdin.buffer.read(4 * PROMPT_MAX + 1)
    try:
        prompt = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadFile("standard input is not UTF-8 text") from error
    if not prompt:
        raise BadRequest('no prompt on standard input; try txt2img "red apple, 3d emoji"')
    return prompt


def warnings(prompt: str, is_named: bool) -> Iterator[str]:
    """The warnings about a prompt as an argument; `is_named` if `generate` stands before it."""
    if not is_named and (command := _command(prompt.strip())):
        yield f"{shown(prompt)} is drawn as a prompt; or did you mean {command}?"
    if prompt.strip()[:1] in tuple(CURLY):
        yield f"prompt: {prompt.strip()[0]} is part of it; the shell reads straight quotes only"
    if option := _OPTION.search(prompt) or _DASH.search(prompt):
        yield f"prompt: {shown(option[0])} is part of it; close its quotes before the options"


def too_many_prompts(words: Sequence[str]) -> str:
    """The error for several prompts: quotes are missing, or a command is misspelt."""
    if any(word[:1] in tuple(CURLY) for word in words):
        text = " ".join(words).strip(CURLY)
        return f"{len(words)} prompts; the shell reads straight quotes only: {shown(text)}"
    if dash := next((word for word in words if _DASH.match(word)), None):
        return f"{len(words)} prompts; {shown(dash)} has a dash: write --{dash.lstrip('–—')}"
    if (value := words[1].lower()) in SWITCHES:
        return (
            f"2 prompts; an option that is on or off takes no value, such as {value}: leave it out"
        )
    closest = COMMANDS.get(words[0], "").removeprefix("txt2img ")
    closest = closest or next(iter(get_close_matches(words[0], NAMES, n=1)), "")
    hint = f"; or did you mean the command {closest}?" if closest else ""
    return f"{len(words)} prompts; put the prompt in quotes: {shown(' '.join(words))}{hint}"


def _command(word: str) -> str:
    """What a lone word may be meant as, if not as a prompt."""
    near = get_close_matches(word, NAMES, n=1, cutoff=0.8)
    return COMMANDS.get(word.lower(), f"txt2img {near[0]}" if near else "")
