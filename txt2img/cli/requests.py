"""What a command line asks for: requests, from its words, a prompt file or a picture."""

import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from txt2img.cli import distributed
from txt2img.cli.names import MODEL_VERBS, NAMES
from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.provenance import with_model
from txt2img.errors import BadRequest, Txt2imgError
from txt2img.images import image_file
from txt2img.request import prompt_file
from txt2img.request.request import Request
from txt2img.request.resolve import Library
from txt2img.request.sweep import Sweep
from txt2img.request.wildcards import Wildcards
from txt2img.system import launcher
from txt2img.system.text import shown


@dataclass
class Wish:
    """What is to be drawn, and what a picture to be repeated says that it was drawn with."""

    requests: Iterable[Request]  # with seeds; they can be gone through again and again
    model: str
    library: Library  # where the files are that the requests name
    made_by: list[image_file.Origin] = field(
        default_factory=list
    )  # pictures that are to be repeated
    warnings: list[str] = field(default_factory=list)  # of what these pictures say
    remarks: list[str] = field(default_factory=list)
    wildcards: Wildcards | None = None
    sweep: Sweep | None = None
    lenient: bool = False
    errors: dict[Hashable, Txt2imgError] = field(default_factory=dict)  # if lenient
    several: bool = False

    def pictures(self) -> Iterator[Request]:
        """A request for each picture, its choices made. BadRequest, BadFile."""
        for number, request in enumerate(self.requests):
            for i in range(request.count):
                one = request.nth(i)
                try:
                    chosen = one if self.wildcards is None else self.wildcards.resolved(one)
                    yield self.library.resolved(chosen)
                except BadRequest as error:
                    if not self.lenient:
                        raise
                    self.errors["choices", number, i] = error

    def failures(self) -> list[Txt2imgError]:
        """What was passed over so far, in lines of a file and in choices."""
        source = self.sweep.requests if self.sweep else self.requests
        lines = source.errors.values() if isinstance(source, prompt_file.Source) else ()
        return [*lines, *self.errors.values()]


def wanted(
    words: Sequence[str],
    prompts_file: str | None,
    picture: Path | None,
    given: Mapping[str, object],
    library: Library,
    batching: BatchOptions,
) -> Wish:
    """What a command line asks for, looked through once. BadRequest, BadFile."""
    if len(words) > 1:
        raise BadRequest(several(words))
    if words and prompts_file is not None:
        raise BadRequest("a prompt and --prompts; give one of them")
    if not words and prompts_file is None and picture is None:
        raise BadRequest('no prompt; try txt2img "red apple, 3d emoji", or txt2img --help')
    base = Request("")
    warnings: list[str] = []
    made_by: list[image_file.Origin] = []
    if picture:
        base, warnings, recorded = repeated(picture, given)
        made_by = [recorded]
    prompt = {"prompt": words[0], "template": ""} if words else {}
    base = Request.from_json({**base.to_json(), **given, **prompt})
    seeded = distributed.seeded(base)
    requests: Iterable[Request] = [seeded]
    if prompts_file is not None:
        seeded = replace(seeded, template="")
        requests = source = prompt_file.source(prompts_file, sys.stdin.buffer, seeded)
        source.lenient = batching.policy.skip
    wish = Wish(requests, base.model, library, made_by, warnings, lenient=batching.policy.skip)
    if batching.wildcards is not None:
        wish.wildcards = Wildcards(batching.wildcards)
    if batching.sweep:
        wish.requests = wish.sweep = Sweep(requests, batching.sweep, batching.zip)
    _look_through(wish, seeded.seed if base.seed is None else None, batching)
    return wish


def several(words: Sequence[str]) -> str:
    """What to say of more words than one prompt: no quotes, or a command that is misspelt."""
    verbs = [f"models {words[0]}"] if words[0] in MODEL_VERBS else []
    near = verbs or get_close_matches(words[0], NAMES, n=1)
    hint = f"; or did you mean the command {near[0]}?" if near else ""
    return f"{len(words)} prompts; put the prompt in quotes: {shown(' '.join(words))}{hint}"


def again(
    pictures: Sequence[Path], given: Mapping[str, object], library: Library, batching: BatchOptions
) -> Wish:
    """The wish for pictures as they say they were drawn, looked through once.

    `given` replaces what they say. BadRequest, BadFile.
    """
    requests: list[Request] = []
    warnings: list[str] = []
    remarks: list[str] = []
    made_by: list[image_file.Origin] = []
    for picture in pictures:
        base, lines, origin = repeated(picture, given)
        asked = Request.from_json({**base.to_json(), **given})
        request = asked.seeded()
        name = shown(str(picture))
        which = f" of {name}" if len(pictures) > 1 else ""
        if asked.seed is None:
            if launcher.found().world > 1:
                raise BadRequest(f"{shown(str(picture))} tells no seed: give --seed to a launch")
            remarks.append(f"seed {request.seed}{which}")
        warnings += [f"{name}: {line}" if which else line for line in lines]
        requests.append(request)
        made_by.append(origin)
    lenient = batching.policy.skip
    wish = Wish(requests, requests[0].model, library, made_by, warnings, remarks, lenient=lenient)
    if batching.wildcards is not None:
        wish.wildcards = Wildcards(batching.wildcards)
    if batching.sweep:
        wish.requests = wish.sweep = Sweep(requests, batching.sweep, batching.zip)
    _look_through(wish, None, batching)
    return wish


def repeated(
    picture: Path, given: Mapping[str, object]
) -> tuple[Request, list[str], image_file.Origin]:
    """The request that a picture carries, what is amiss, what drew it. BadFile, BadRequest."""
    found = image_file.read(picture)
    chosen = given.get("model")
    request = with_model(picture, found, None if chosen is None else str(chosen))
    return replace(request, count=1), list(found.notes), found.origin


def _look_through(wish: Wish, drawn: int | None, batching: BatchOptions) -> None:
    """Note what there is to say of the requests. BadRequest if a drawn seed would not do."""
    seen = 0
    told = False
    for request in wish.requests:
        seen += min(request.count, 2)
        told = told or (drawn is not None and request.seed == drawn)
    wish.several = seen > 1
    here = launcher.found()
    apart = here.world > 1 and not here.can_rendezvous
    if told and (batching.resume or batching.shard or apart):
        option = "--resume" if batching.resume else "--shard" if batching.shard else "a launch"
        raise BadRequest(f"{option} needs the seed to be known: give --seed, as the first run had")
    if told:
        wish.remarks.append(f"seed {drawn}")
    if seen:
        next(chain(wish.pictures(), [None]))  # what is wrong with the first one's choices
