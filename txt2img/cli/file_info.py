"""Contents of picture and weight files, as records for people and for --json."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from txt2img.cli.terminal.console import print_line
from txt2img.errors import BadFile, Txt2imgError
from txt2img.images import formats, image_file, svg
from txt2img.images.animation import STEP_KEY
from txt2img.request.input_image import UNNAMED, ImageRef
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.files import open_regular, parse_json
from txt2img.system.text import format_size, shown


def picture_kind(name: str) -> str:
    """The format that a file's first bytes tell; empty if it is no picture. BadFile."""
    if name == "default" or Path(name).is_dir():
        return ""
    with open_regular(Path(name)) as file:
        format = formats.by_content(file.read(formats.HEAD))
    if format is None and formats.by_suffix(name):
        raise BadFile(f"{shown(name)} is not a picture, despite its name")
    return format.name if format else ""


def picture(path: Path, kind: str) -> dict[str, object]:
    """A picture's metadata, for people and for --json."""
    info = image_file.read(path)
    texts = dict(info.texts)
    article = "an" if kind in ("AVIF", "SVG") else "a"
    paths = f", {svg.count_paths(path.read_bytes())} paths" if kind == formats.SVG.name else ""
    parameters = texts.pop("parameters", "")
    ours, step = (_json(texts.pop(key, '""')) for key in ("txt2img", STEP_KEY))
    return {
        "kind": f"{article} {kind} picture, {info.width}x{info.height}{paths}",
        "began from": began_from(info.request) if info.request and info.request.image else "",
        "parameters": parameters,
        "txt2img": ours,
        STEP_KEY: step,
        "request": info.request.to_json() if info.request and not ours else "",
        "other texts": {key: f"{len(text):,} characters" for key, text in texts.items()},
        "notes": list(info.notes),
    }


def began_from(request: Request) -> str:
    """What a request begins from, in a line: picture, strength, mask."""
    parts = [_named(request.image)]
    if request.strength is not None:
        parts[0] += f", strength {request.strength:g}"
    if request.mask is not None:
        inverted = ", inverted" if request.mask_invert else ""
        parts.append(f"mask: {_named(request.mask)}{inverted}")
    if request.only_masked is not None:
        parts.append(f"only the masked part, {request.only_masked} pixels around it")
    if request.outpaint is not None:
        parts.append(f"outpainted by {request.outpaint}")
    return "; ".join(parts)


def _named(ref: ImageRef | None) -> str:
    """A picture's name and the hash of its pixels, as far as they are known."""
    if ref is None or ref.name == UNNAMED:
        return "a picture that the record does not name"
    known = f" (hash {ref.hash[:12]})" if ref.hash else ""
    return f"{shown(ref.name)}{known}"


def _json(text: str) -> object:
    """The value of a JSON text; "" if it is broken, about which info.notes has a line."""
    try:
        return parse_json(text)
    except ValueError:
        return ""


def weights(name: str) -> dict[str, object]:
    """Facts about a weight file or folder. Txt2imgError."""
    from txt2img.weights.checkpoint import find_model, summary
    from txt2img.weights.file_kind import kind_of

    path = find_model(name)
    if path.is_file() and kind_of(path) == "upscaler":
        return upscaler(path)
    try:
        model = summary(name)
    except BadFile:
        if part := single_file(path):
            return part
        raise
    family, usual = model.family, model.family.defaults
    needs = "" if model.vae else "a VAE, given with --vae"
    if family.extra_inputs:
        needs = f"{family.extra_inputs} in addition to the prompt: --image"
    return {
        "kind": f"weights of {family.name}",
        "name": model.name,
        "hash": model.hash,
        "config hash": model.config_hash,
        "layout": model.layout,
        "prediction": family.prediction,
        "needs": needs,
        "weights": f"{model.parameters:,} in {model.tensors:,} tensors",
        "dtype": ", ".join(model.dtypes),
        "size": format_size(model.size),
        "quantized": model.quantized,
        "memory": memory_of(name),
        "draws": f"{usual.width}x{usual.height}, {usual.steps} steps, cfg {usual.cfg:g}, "
        f"{usual.sampler}, {usual.schedule}",
    }


def memory_of(name: str) -> str:
    """What drawing with a model takes here, as a whole and at least; empty if it is not whole."""
    from txt2img.pipeline.estimates.forecast import forecast_for

    try:
        forecast = forecast_for(name, AdapterPaths(), None, None)
        peak = forecast.peak(forecast.filled(Request("")))
    except Txt2imgError:
        return ""
    whole, least = format_size(peak.bytes), format_size(peak.least)
    return (
        f"about {whole} in {forecast.dtype} on {forecast.device}; at least {least}, with "
        "--max-memory, block by block"
    )


def upscaler(path: Path) -> dict[str, object]:
    """Facts about an upscaler's file; its architecture if spandrel is there to tell it."""
    from txt2img.weights.formats import safetensors_file
    from txt2img.weights.registry.hashes import model_hash
    from txt2img.weights.upscaler import describe_network

    refs = safetensors_file.header(path).tensors.values()
    try:
        network = describe_network(path)
        draws = f"{network.architecture.name}, {network.scale} times as wide and high"
    except Txt2imgError as error:
        draws = f"unknown: {error}"
    return {
        "kind": "an upscaler",
        "name": path.name.removesuffix(".safetensors"),
        "hash": model_hash([path]),
        "network": draws,
        "weights": f"{sum(prod(ref.shape) for ref in refs):,} in {len(refs):,} tensors",
        "dtype": ", ".join(sorted({ref.dtype for ref in refs})),
        "size": format_size(sum(ref.nbytes for ref in refs)),
        "used": f"txt2img upscale FILE --model {shown(path, 200)}, or --upscale",
    }


def single_file(path: Path) -> dict[str, object] | None:
    """Facts about a file that is no whole model: a LoRA, a VAE and others. None if unknown."""
    from txt2img.weights.adapters.file_layout import short_hash
    from txt2img.weights.file_kind import with_article
    from txt2img.weights.file_summary import summarise
    from txt2img.weights.registry.hashes import model_hash

    if (file := summarise(path)) is None:
        return None
    return {
        "kind": with_article(file.kind),
        "title": file.title,
        "made for": file.base,
        "trigger": ", ".join(file.words),
        **file.details,
        "hash": model_hash((file.path,)),
        **({"lora hash": short_hash(file.path)} if file.kind == "LoRA" else {}),
        "weights": f"{file.parameters:,} in {file.tensors:,} tensors",
        "dtype": ", ".join(file.dtypes),
        "size": format_size(file.size),
        "quantized": file.quantized,
    }


def print_record(name: str, record: Mapping[str, object]) -> None:
    """Print what is known of a file, its kind first."""
    print_line(f"{name}: {record['kind']}")
    for key, value in record.items():
        if key != "kind" and value:
            _print_field(key, value)


def _print_field(key: str, value: object) -> None:
    """Print a field on one line, or on several if its value has several."""
    if isinstance(value, Mapping):
        value = json.dumps(value, indent=2, ensure_ascii=False)
    elif isinstance(value, list):
        value = "\n".join(str(item) for item in value)
    if "\n" not in str(value) and key not in ("parameters", "txt2img"):
        print_line(f"  {key:11} {value}")
        return
    print_line(f"  {key}:")
    for line in str(value).split("\n"):
        print_line(f"    {line}")
