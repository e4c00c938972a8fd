"""Results of a run: each picture when it is written, failures, and progress."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from txt2img.cli.terminal.console import Bar, log, print_json, print_path, rate
from txt2img.errors import BadOutput, Txt2imgError
from txt2img.request.hires import written_size
from txt2img.request.request import Request

if TYPE_CHECKING:
    from txt2img.pipeline.batch import Failed, Finished, Started, Step, Upscaling


class ProgressMeter:
    """Progress of a run on a bar."""

    def __init__(
        self,
        bar: Bar,
        pictures: int,
        ready: int,
        steps: int,
        warnings: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        self.bar, self.pictures, self.ready, self.steps = bar, pictures, ready, steps
        self.warnings = warnings or {}  # by a picture's index, for its record
        self.prompt = ""
        self.done, self.start = 0, time.monotonic()

    def begin(self, started: "Started") -> None:
        """Take the prompt of the pictures that are started."""
        self.prompt = started.items[0].request.prompt

    def show(self, step: "Step") -> None:
        """Count and show a step."""
        self.done += 1
        several = self.pictures > 1
        label = f"{self.ready} of {self.pictures} done" if several else "drawing"
        speed = rate(self.done, time.monotonic() - self.start)
        remark = f"{step.step}/{step.steps} {speed}"
        prompt = self.prompt if several else ""
        self.bar.advance(label, self.done, self.steps, remark, prompt)

    def show_upscaling(self, event: "Upscaling") -> None:
        """Show the tiles of a picture that are upscaled."""
        several = self.pictures > 1
        label = f"{self.ready} of {self.pictures} done" if several else "upscaling"
        remark = f"tile {event.done}/{event.total}"
        self.bar.advance(label, event.done, event.total, remark, self.prompt if several else "")


def request_summary(request: Request) -> dict[str, object]:
    """The fields of a request in a JSON record."""
    templates = {
        name: text for name in ("template", "negative_template") if (text := getattr(request, name))
    }
    second, switch = request.refiner, request.refiner_switch
    return {
        "prompt": request.prompt,
        "negative": request.negative,
        **templates,
        "seed": request.seed,
        "size": [request.width, request.height],
        **({"final_size": [*written_size(request)]} if is_larger(request) else {}),
        **began_from(request),
        "steps": request.steps,
        "cfg": request.cfg,
        "sampler": request.sampler,
        "schedule": request.schedule,
        **({} if second is None else {"refiner": {**asdict(second), "switch": switch}}),
    }


def began_from(request: Request) -> dict[str, object]:
    """The fields of a request's picture to begin from in a JSON record; none without one."""
    if request.image is None:
        return {}
    mask = {} if request.mask is None else {"mask": asdict(request.mask)}
    return {"image": asdict(request.image), "strength": request.strength, **mask}


def is_larger(request: Request) -> bool:
    """Whether a request's picture is written larger than its width and height say."""
    return request.has_hires or bool(request.upscale and request.upscale_by)


def print_finished(finished: "Finished", json: bool, warnings: Sequence[str] = ()) -> None:
    """Print a finished picture's path, or its JSON record with its warnings."""
    if not json:
        print_path(finished.path)
        return
    item = finished.item
    retried = {} if item.first_seed is None else {"first_seed": item.first_seed}
    print_json(
        {
            "path": str(finished.path),
            "index": item.index,
            "id": item.id,
            **request_summary(finished.request),
            **retried,
            "seconds": round(finished.seconds, 3),
            "model": finished.origin.model,
            "hash": finished.origin.hash,
            "pixels_sha256": finished.pixels_sha256,
            "warnings": list(warnings),
        }
    )


def print_failed(failed: "Failed", json: bool) -> None:
    """Report a failed picture of a run that goes on."""
    item = failed.item
    log(f"Error: picture {item.index}: {failed.error}")
    if json:
        about = {"index": item.index, "id": item.id, **request_summary(item.request)}
        print_json({"error": str(failed.error), "code": failed.error.exit_code, **about})


def print_file_error(name: str, error: Txt2imgError, json: bool) -> None:
    """Report an error in one of a command's files; the command goes on."""
    log(f"Error: {error}")
    if json:
        print_json({"file": name, "error": str(error), "code": error.exit_code})


@contextmanager
def errors_on_stdout(json: bool) -> Iterator[None]:
    """With `json`, print the error that ends a run as a record too."""
    try:
        yield
    except Txt2imgError as error:
        with suppress(BadOutput):
            print_error(error, json, on_stderr=False)
        raise


def print_error(error: Txt2imgError, json: bool, on_stderr: bool = True) -> None:
    """Report an error that belongs to no single picture."""
    if on_stderr:
        log(f"Error: {error}")
    if json:
        print_json({"error": str(error), "code": error.exit_code})
