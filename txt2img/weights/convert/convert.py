"""Convert weight files and models, tensor by tensor, and check what was written."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from txt2img.errors import BadOutput, BadRequest, UnknownLayout
from txt2img.models.configs import T5TextConfig
from txt2img.models.tokenizer import EOS, PromptTokenizer, Tokenizer
from txt2img.system import files
from txt2img.system.text import format_size, shown
from txt2img.weights.checkpoint import Checkpoint, find_model, open_checkpoint
from txt2img.weights.convert.folder import folder_of
from txt2img.weights.convert.original import original_parts
from txt2img.weights.convert.target import PREFIX, Part, Target, architecture, parse_target
from txt2img.weights.formats import llama_cpp, quantized_layers, safetensors_file, tensors
from txt2img.weights.formats.safetensors_file import GGUF, Header
from txt2img.weights.formats.writers import write_gguf, write_safetensors
from txt2img.weights.layouts.components import ALPHA_FILE, STEM
from txt2img.weights.text_tokenizer_files import qwen_tokenizer, t5_tokenizer
from txt2img.weights.tokenizer_files import clip_tokenizer

LAYOUTS = ("diffusers", "single", "network")
SUFFIX = ".safetensors"
WRONG = 0.5  # a relative error that no way of storing a layer has
HEADER_ROOM = 2**20  # bytes
PREDICTION = "modelspec.prediction_type"
DROPPED = ("general.", quantized_layers.METADATA, "format", "split.")  # beginnings of keys


@dataclass(frozen=True)
class WeightFile:
    """A file to be written, by its place in the output, empty for the output itself."""

    place: str
    parts: tuple[Part, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """What will be written where."""

    out: Path
    target: Target
    files: tuple[WeightFile, ...]
    others: Mapping[str, bytes | Path] = field(default_factory=dict)  # by place: configs and such
    notes: tuple[str, ...] = ()
    arch: str = ""  # of a GGUF file

    @cached_property  # each progress tells it
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = (part for file in self.files for part in file.parts)
        return sum(one.nbytes for part in parts for one in self.target.planned(part))


@dataclass(frozen=True)
class Progress:
    """How much is done, in bytes."""

    doing: str
    done: int
    total: int


@dataclass
class Report:
    """The relative errors of what was written, by layer; 0 where it is the same."""

    errors: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float]:
        """The layer of the largest error."""
        return max(self.errors.items(), key=lambda item: item[1], default=("", 0.0))


def plan(source: str, out: Path, to: str | None = None, layout: str | None = None) -> Plan:
    """What converting a model or a weight file takes, by headers and configs only.

    Raises BadRequest, BadOutput, and what opening the source does.
    """
    target = parse_target(to)
    if layout not in (None, *LAYOUTS):
        raise BadRequest(f"--layout {shown(layout)}; choose from {', '.join(LAYOUTS)}")
    if target.gguf != (out.suffix == GGUF):
        kind = "ends in .gguf: say --to gguf:Q8_0" if out.suffix == GGUF else "must end in .gguf"
        raise BadRequest(f"{shown(out)} {kind}")
    if out.suffix in safetensors_file.PICKLES:
        raise BadRequest(f"no pickles are written: {shown(out)}; end it in .safetensors")
    if os.path.lexists(out):
        raise BadOutput(f"{shown(out)} exists already; choose another name")
    path = Path(source) if Path(source).exists() else find_model(source)
    is_file = path.is_file() and path.suffix != ".json"
    wanted = layout or _layout_of(out, target, is_file)
    if wanted == "diffusers" and out.suffix in (SUFFIX, GGUF):
        raise BadRequest(f"--layout diffusers makes a folder, not {shown(out.name)}")
    if wanted in ("single", "network") and out.suffix not in (SUFFIX, GGUF):
        raise BadRequest(f"{shown(out.name)} must end in .safetensors for --layout {wanted}")
    if target.gguf and wanted != "network":
        raise BadRequest("GGUF files are of a network alone; leave --layout out")
    planned = _planned(source, path, out, target, wanted)
    if wanted == "diffusers" and target.kind in (quantized_layers.FLOAT8[0], "I8"):
        note = f"diffusers reads no folder in {to}: this one is for txt2img"
        return replace(planned, notes=(*planned.notes, f"{note}; ComfyUI reads --layout single"))
    return planned


def _layout_of(out: Path, target: Target, is_file: bool) -> str:
    """The layout that a name for the output means; empty for that of the source."""
    if target.gguf:
        return "network"
    if out.suffix == SUFFIX:
        return "" if is_file else "single"
    return "diffusers"


def _planned(source: str, path: Path, out: Path, target: Target, wanted: str) -> Plan:
    header = safetensors_file.header(path) if path.is_file() and path.suffix != ".json" else None
    if header is not None and wanted in ("", "network") and _is_bare(header, wanted):
        return _one_file(header, out, target, wanted)
    if header is not None and target.gguf and (text := _text_encoder(header, out, target)):
        return text
    if header is None and wanted == "diffusers" and path.is_dir():
        return _folder(path, out, target)
    checkpoint = open_checkpoint(source)
    if wanted == "diffusers":
        by_component, others = folder_of(checkpoint)
        weights = tuple(
            WeightFile(place, tuple(parts.values()), {"format": "pt"})
            for place, parts in by_component.items()
        )
        return Plan(out, target, weights, others)
    parts = original_parts(checkpoint)
    metadata = {} if header is None else _kept(header.metadata)
    if checkpoint.family.prediction == "v":
        metadata[PREDICTION] = "v"
    if wanted == "single":
        _check_tokenizers(checkpoint)
        whole = tuple(part for one in parts.values() for part in one.values())
        return Plan(out, target, (WeightFile("", whole, metadata),))
    network = parts[checkpoint.family.network.component].values()
    bare = tuple(replace(part, name=part.name.removeprefix(PREFIX)) for part in network)
    return _network_plan(bare, metadata, out, target)


def _check_tokenizers(checkpoint: Checkpoint) -> None:
    """Raise UnknownLayout for a tokenizer of a model's own, which no single file carries."""
    for name, tokenizer in checkpoint.tokenizers.items():
        if isinstance(tokenizer, Tokenizer):
            usual: PromptTokenizer = clip_tokenizer(tokenizer.length, EOS)
        else:
            is_t5 = isinstance(checkpoint.family.texts[-1], T5TextConfig)
            usual = t5_tokenizer(16) if is_t5 else qwen_tokenizer(16)
        if tokenizer.vocab != usual.vocab:
            raise UnknownLayout(
                f"{shown(checkpoint.name)}: the tokenizer of its {name} is its own, which a single "
                "file does not carry; convert it to a folder"
            )


def _is_bare(header: Header, wanted: str) -> bool:
    """Whether a file's own names do for its conversion: all, or those of a network in it."""
    return not wanted or bool(_network_names(header))


def _network_names(header: Header) -> dict[str, str]:
    """The names of a file's network in it and alone, in the original layout; empty if none."""
    prefixed = {n: n.removeprefix(PREFIX) for n in header.tensors if n.startswith(PREFIX)}
    names = prefixed or {name: name for name in header.tensors}
    return names if architecture([*names.values()]) else {}


def _one_file(header: Header, out: Path, target: Target, wanted: str) -> Plan:
    """A file by its own names."""
    names = _network_names(header) if wanted else {name: name for name in header.tensors}
    parts = tuple(Part(theirs, (header.tensors[name],)) for name, theirs in names.items())
    metadata = _kept(header.metadata)
    if "v_pred" in header.tensors:
        metadata[PREDICTION] = "v"
    if not wanted:
        return Plan(out, target, (WeightFile("", parts, metadata),))
    left = len(header.tensors) - len(parts)
    notes = (f"left out: {left:,} tensors of other parts than the network",) if left else ()
    return replace(_network_plan(parts, metadata, out, target), notes=notes)


def _text_encoder(header: Header, out: Path, target: Target) -> Plan | None:
    """A T5's encoder or a Qwen3 by llama.cpp's names; None for another file."""
    arch, names = llama_cpp.llama_names(header.tensors)
    parts = tuple(Part(theirs, (header.tensors[name],)) for name, theirs in names.items())
    file = WeightFile("", parts, _kept(header.metadata))
    return Plan(out, target, (file,), arch=arch) if parts else None


def _network_plan(
    parts: tuple[Part, ...], metadata: Mapping[str, str], out: Path, target: Target
) -> Plan:
    """A network alone. Raises UnknownLayout for a GGUF file of what has no name in it."""
    arch = architecture([part.name for part in parts])
    if target.gguf and not arch:
        raise UnknownLayout("GGUF files are made of networks that denoise, T5 and Qwen3 only")
    target = replace(target, reshapes=arch in ("sd1", "sdxl"))
    return Plan(out, target, (WeightFile("", parts, metadata),), arch=arch)


def _folder(path: Path, out: Path, target: Target) -> Plan:
    """A diffusers folder by its own names, with its other files."""
    weights, others = [], dict[str, bytes | Path]()
    for home in [path, *sorted(one for one in path.iterdir() if one.is_dir())]:
        place = "" if home == path else f"{home.name}/"
        for one in sorted(one for one in home.iterdir() if one.is_file()):
            if (
                not one.name.endswith((SUFFIX, ".index.json", *safetensors_file.PICKLES))
                or one.name == ALPHA_FILE
            ):
                others[f"{place}{one.name}"] = one
        stem = "model" if home.name.startswith("text_encoder") else STEM
        if any(one.name.startswith(stem) for one in home.glob("*.safetensors*")):
            header = safetensors_file.component(home, stem)
            parts = tuple(Part(name, (ref,)) for name, ref in header.tensors.items())
            metadata = {"format": "pt"} | _kept(header.metadata)
            weights.append(WeightFile(f"{place}{stem}{SUFFIX}", parts, metadata))
    if not weights:
        raise UnknownLayout(f"{shown(path.name)} is no diffusers folder: it has no weights")
    return Plan(out, target, tuple(weights), others)


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that stays true of another way to store the same weights."""
    return {key: value for key, value in metadata.items() if not key.startswith(DROPPED)}


def convert(plan: Plan, report: Report) -> Iterator[Progress]:
    """Write all or nothing, then read it again; errors by layer go to the report.

    Raises BadOutput if the disk is too small or what was written is wrong, MissingWeights for
    values that do not fit, BadFile.
    """
    need = plan.nbytes + HEADER_ROOM
    try:
        free = shutil.disk_usage(plan.out.absolute().parent).free
        if free < need:
            raise BadOutput(
                f"{shown(plan.out)} takes {format_size(need)}, and {format_size(free)} of the "
                "disk are free"
            )
        with _temporary(plan) as place:
            yield from _write(plan, place)
            yield from _check(plan, place, report)
            _finish(plan, place)
    except OSError as error:
        raise BadOutput(f"cannot write {shown(plan.out)}: {files.reason(error)}") from error


@contextmanager
def _temporary(plan: Plan) -> Iterator[Path]:
    """A place beside the output, which is empty; removed at the end, if it is still there."""
    parent, holder = plan.out.absolute().parent, None
    place = parent / f".txt2img-{secrets.token_hex(8)}.part"
    if is_folder := bool(plan.files[0].place):
        place.mkdir()
    elif locked := files.lock_file(parent):  # others remove what nobody holds
        place, holder = locked
    else:
        os.close(files.create(place))
    try:
        yield place
    finally:
        if is_folder:
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
        if holder is not None:
            os.close(holder)


def _write(plan: Plan, place: Path) -> Iterator[Progress]:
    done = 0
    for file in plan.files:
        planned = [one for part in file.parts for one in plan.target.planned(part)]
        opened = tensors.Files()
        contents = (one for part in file.parts for one in plan.target.encoded(part, opened))
        path = place / file.place if file.place else place
        path.parent.mkdir(parents=True, exist_ok=True)
        if plan.target.gguf:
            written = write_gguf(path, planned, contents, file.metadata, plan.arch)
        else:
            written = write_safetensors(path, planned, contents, file.metadata)
        for one, count in zip(planned, written, strict=True):
            done += count
            yield Progress(f"write {one.name}", done, plan.nbytes)
        with path.open("rb") as written_file:
            os.fsync(written_file.fileno())


def _check(plan: Plan, place: Path, report: Report) -> Iterator[Progress]:
    """Compare what was written with what it was made of."""
    done = 0
    for file in plan.files:
        path = place / file.place if file.place else place
        header, opened = safetensors_file.header(path), tensors.Files()
        stored = {ref.key: ref for ref in header.tensors.values()}  # by the file's own names
        for part in file.parts:
            error = _error(part, replace(part, refs=(stored[part.name],)), opened)
            report.errors[part.name] = error
            if not error < WRONG:
                raise BadOutput(f"{shown(part.name)} was written wrong: its error is {error:.2g}")
            done += stored[part.name].nbytes
            yield Progress(f"check {part.name}", done, plan.nbytes)


def _error(part: Part, written: Part, opened: tensors.Files) -> float:
    """The relative error of a part as it was written; infinite for another shape."""
    expected, found = part.read(opened), written.read(opened)
    if found.shape != expected.shape:
        return float("inf")
    if not expected.dtype.is_floating_point:
        return 0.0 if bool((found == expected).all()) else float("inf")
    difference, size = (found.float() - expected.float()).norm(), expected.float().norm()
    return float(difference / size) if float(size) else float(difference)


def _finish(plan: Plan, place: Path) -> None:
    """Write the other files, and give the output its name. OSError."""
    for name, content in plan.others.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    if place.is_dir():
        os.rename(place, plan.out)
    else:
        files.link(place, plan.out)
    with suppress(OSError):
        files.sync_folder(plan.out.absolute().parent)
