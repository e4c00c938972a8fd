"""A1111's `parameters` text, which most programs of the field write or read.

PROMPT, then "Negative prompt: …" if there is one, then one line of `Key: value` entries, which
begins with "Steps:" and is the last unless an extension adds lines of its own.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from txt2img.images.metadata.a1111_hires import hires_entries, hires_fields
from txt2img.images.metadata.a1111_image import image_fields
from txt2img.images.metadata.a1111_unsupported import unsupported
from txt2img.images.metadata.a1111_versions import generator_of
from txt2img.images.metadata.parsed import NO_VAE, accepted, cap, file_stem, number
from txt2img.request import Request, Sampler
from txt2img.request.adapters import Lora, Refiner, add_lora_tags, strip_lora_tags
from txt2img.request.compat import rules
from txt2img.request.fields import FIELDS, Field
from txt2img.request.request import HIRES
from txt2img.request.sampler_names import Name, split_sampler
from txt2img.request.upscalers import UpscalerRef

NEGATIVE = "Negative prompt:"

# A key, a colon, and a JSON string or a run without commas. The key's length is bounded, so that
# a line of any size is read in linear time.
_ENTRY = re.compile(r' ?(\w[\w \-/]{1,63}):[ \t]*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_JSON_TAIL = re.compile(r"(?:^|, )SDCPP: (\{.*)$")
# A1111's own keys in its order; others follow.
ORDER = (
    *("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model"),
    *("VAE hash", "VAE", "Variation seed", "Variation seed strength", "Denoising strength"),
    *("Clip skip", "ENSD"),
    *("RNG", "Tiling", "Eta DDIM", "Eta", "Refiner", "Refiner switch at"),
    *("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler"),
)
_ENTRIES_MIN = 3  # a line with fewer is prompt text
_ADDED = re.compile(r"(\w[\w \-/]{1,63}):(?: (.*))?")  # an extension's line after the entries


@dataclass(frozen=True)
class Infotext:
    """A parsed text; `entries` keeps their order, and every value as text without quotes."""

    prompt: str
    negative: str = ""
    entries: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The text as A1111 writes it."""
        negative = f"\n{NEGATIVE} {self.negative}" if self.negative else ""
        line = ", ".join(
            key if key == value else f"{key}: {_quoted(value)}"
            for key, value in self.entries.items()
        )
        return f"{self.prompt}{negative}\n{line}".strip()


def parse(text: str) -> Infotext:
    """The prompts and entries of a `parameters` text; all is prompt if it has no entries."""
    lines = [line.strip() for line in text.strip().split("\n")]
    at = next((i for i in range(len(lines))[::-1] if lines[i].startswith("Steps:")), len(lines) - 1)
    entries = _entries(lines[at])
    if len(entries) < _ENTRIES_MIN:
        at = len(lines) - 1
        entries = _entries(lines[at])
    if len(entries) < _ENTRIES_MIN:
        at, entries = len(lines), {}
    lines, entries = lines[:at], entries | _added(lines[at + 1 :]) | entries
    start = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:])[len(NEGATIVE) :].strip()
    return Infotext("\n".join(lines[:start]), negative, entries)


def describe(request: Request, model: str, model_hash: str, version: str) -> Infotext:
    """A filled request as A1111's text, in its order of keys and with its names.

    "txt2img" stands before the version because A1111 renders pictures with a bare low version
    number by its old rules; RNG is CPU because that is where the noise is drawn.
    """
    size = f"{request.width}x{request.height}" if request.width and request.height else None
    entries = {row.a1111: _text(request, row) for row in FIELDS.values() if row.a1111}
    entries |= {
        "Size": size,
        "Model hash": model_hash or None,
        "Model": model or None,
        "VAE hash": request.vae.hash if request.vae else None,
        "VAE": request.vae.name if request.vae else None,
        "ENSD": _maybe(request.ensd),
        "RNG": "NV" if rules(request).init_rng.startswith("nv") else "CPU",
        "Eta DDIM" if request.sampler == Sampler.DDIM else "Eta": _maybe(request.eta),
        "Refiner": _with_hash(request.refiner),
        "Refiner switch at": _maybe(request.refiner_switch if request.refiner else None),
        "Lora hashes": _hashes((lora.name, lora.hash) for lora in request.loras),
        "TI hashes": _hashes((word.token, word.hash) for word in request.embeddings),
        "Template": request.template or None,
        "Negative Template": request.negative_template or None,
        "Compat": request.compat,
        "Version": f"txt2img {version}",
    }
    entries |= _input_entries(request)
    if request.controls or request.ip_adapters:
        from txt2img.images.metadata.a1111_control import control_entries

        last = entries.pop("Version")
        entries |= {**control_entries(request), "Version": last}
    if request.has_hires:
        entries |= hires_entries(request)
    if not request.subseed_strength:
        del entries["Variation seed"]
    ordered = sorted(entries, key=lambda key: ORDER.index(key) if key in ORDER else len(ORDER))
    present = {key: value for key in ordered if (value := entries[key]) is not None}
    return Infotext(add_lora_tags(request.prompt, request.loras), request.negative, present)


def _input_entries(request: Request) -> dict[str, str | None]:
    """The entries on the picture that a request begins from, as A1111's img2img has them."""
    if request.image is None:
        return {}
    masked = request.mask is not None
    blur = rules(request).image.mask_blur if request.mask_blur is None else request.mask_blur
    fill, part = request.inpaint_fill, request.only_masked
    return {
        "Denoising strength": f"{request.strength:g}" if request.strength is not None else None,
        "Resize mode": None if request.resize is None else request.resize.label,
        "Mask blur": f"{blur:g}" if masked else None,
        "Mask mode": "Inpaint not masked" if masked and request.mask_invert else None,
        "Masked content": None if fill is None else fill.label,
        "Inpaint area": None if part is None else "Only masked",
        "Masked area padding": None if part is None else str(part),
        "Outpaint": None if request.outpaint is None else str(request.outpaint),
    }


def _text(request: Request, row: Field) -> str | None:
    """A field's value as A1111 writes it; None where it writes none."""
    value = getattr(request, row.name)
    if value is None or value in (row.default, row.neutral):
        return None
    return value.label if isinstance(value, Name | UpscalerRef) else str(value)


def ambiguous(request: Request) -> str | None:
    """A warning if A1111's text will be read as another prompt than was given."""
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative)):
        if any(line.strip().startswith(NEGATIVE) for line in text.split("\n")):
            return (
                f'a line of the {name} starts with "{NEGATIVE}": other programs will read it as '
                "the negative prompt (txt2img itself reads it right)"
            )
    return None


def to_request(info: Infotext) -> tuple[Request, list[str]]:
    """The request of a text, and a note for each entry that cannot be carried over."""
    entries = info.entries
    generator = generator_of(entries, info.prompt)
    notes = [*generator.notes]
    prompt, loras = strip_lora_tags(info.prompt, notes)
    vae = entries.get("VAE", "")
    words = _hashes_by_name(entries.get("TI hashes", ""))
    values = {
        "prompt": prompt,
        "negative": info.negative,
        **{
            name: value if FIELDS[name].kind is str else number(value)
            for name, value in _request_fields(entries).items()
        },
        **{name: number(value) for name, value in generator.values.items()},
        "loras": [*_loras(loras, entries)],
        "embeddings": [{"token": token, "hash": digits} for token, digits in words.items()],
        "vae": None if vae in NO_VAE else {"name": vae, "hash": entries.get("VAE hash", "")},
        "refiner": _refiner(entries.get("Refiner", "")),
        **image_fields(entries),
    }
    if any(key.startswith("ControlNet") for key in entries):
        from txt2img.images.metadata.a1111_control import control_fields

        values = {**control_fields(entries, notes), **values}
    request = Request.from_json(accepted(values, notes))
    return request, cap([*notes, *unsupported(entries)])


def _loras(tagged: Iterable[Lora], entries: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """The LoRAs of a prompt's tags, then those that stand in Fooocus' list of weights alone."""
    hashes = _hashes_by_name(entries.get("Lora hashes", ""))
    weights = _hashes_by_name(entries.get("Lora weights", ""))
    for lora in tagged:
        weights.pop(lora.name, None)
        yield asdict(replace(lora, hash=hashes.get(_plain(lora.name), "")))
    for name, weight in weights.items():
        both = number(weight)
        yield {"name": file_stem(name), "unet": both, "text": both, "hash": hashes.get(name, "")}


def _hashes(pairs: Iterable[tuple[str, str]]) -> str | None:
    """Names and hashes as A1111 lists them, each name once; None if there are none."""
    return ", ".join(f"{_plain(name)}: {digits}" for name, digits in dict(pairs).items()) or None


def _hashes_by_name(text: str) -> dict[str, str]:
    """The hashes of a list of `name: hash`, by name."""
    pairs = (pair.partition(": ") for pair in text.split(", "))
    return {name: digits for name, _, digits in pairs if name and digits}


def _with_hash(refiner: Refiner | None) -> str | None:
    """A refiner as A1111 writes it: `name [hash]`."""
    if refiner is None:
        return None
    return f"{refiner.name} [{refiner.hash}]" if refiner.hash else refiner.name


def _refiner(text: str) -> dict[str, str] | None:
    """The refiner of a `name [hash]`; None for an empty text."""
    match = re.fullmatch(r"(.+?)(?: \[([0-9a-fA-F]{1,64})\])?", text)
    return None if match is None else {"name": match[1], "hash": match[2] or ""}


def _plain(name: str) -> str:
    """A name without the characters that separate a list of hashes."""
    return re.sub("[:,]", "", name)


def _request_fields(entries: dict[str, str]) -> dict[str, str]:
    """The entries that a Request has fields for, by the fields' names."""
    sampler, schedule = split_sampler(
        entries.get("Sampler"), entries.get("Schedule type", entries.get("Scheduler"))
    )
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", entries.get("Size", ""))
    texts = {name: entries.get(row.a1111) for name, row in FIELDS.items() if row.a1111}
    texts |= {
        "sampler": sampler,
        "schedule": schedule,
        "width": size[1] if size else None,
        "height": size[2] if size else None,
        "eta": entries.get("Eta DDIM", entries.get("Eta")),
        **dict.fromkeys(HIRES),
        **_extension_fields(entries),
        **hires_fields(entries),
    }
    return {name: text for name, text in texts.items() if text}


def _extension_fields(entries: Mapping[str, str]) -> dict[str, str]:
    """What dynamic thresholding and FreeU say, the extension with its default settings."""
    fields, on = {}, ("True", "true")
    if entries.get("Dynamic thresholding enabled") in on:
        mimic, cut = entries.get("Mimic scale", "7"), number(entries.get("Threshold percentile"))
        part = f",{cut / 100:g}" if isinstance(cut, int | float) else ""
        fields["dynamic_thresholding"] = f"{mimic}{part}"
    if entries.get("freeu_enabled") in on:  # Forge, whose FreeU is version 2
        parts = [entries.get(f"freeu_{name}", "1") for name in ("b1", "b2", "s1", "s2")]
        fields["freeu"] = ",".join(parts)
    return fields


def _added(lines: Iterable[str]) -> dict[str, str]:
    """The lines after the entries, each with a key; a line without one continues the last value."""
    added: dict[str, str] = {}
    key = "Text after the entries"
    for line in lines:
        match = _ADDED.fullmatch(line)
        key, value = (match[1], match[2] or "") if match else (key, line)
        added[key] = f"{added[key]}\n{value}" if key in added else value
    return added


def _entries(line: str) -> dict[str, str]:
    """The `Key: value` pairs of one line; sd.cpp's `SDCPP: {json}` reaches to its end."""
    tail = _JSON_TAIL.search(line)
    matches = _ENTRY.finditer(line[: tail and tail.start()])
    entries = {match[1]: _unquoted(match[2].strip()) for match in matches}
    return entries | ({"SDCPP": tail[1]} if tail else {})


def _quoted(value: str) -> str:
    """A value as A1111 writes it: a JSON string if it would be misread without quotes."""
    if value != value.strip() or value[:1] in ("", '"') or re.search("[,:\r\n]", value):
        return json.dumps(value, ensure_ascii=False)
    return value


def _unquoted(value: str) -> str:
    """A value decoded, if it is a JSON string."""
    if value[:1] != '"' or value[-1:] != '"':
        return value
    try:
        decoded = json.loads(value)
    except ValueError:
        return value
    return decoded if isinstance(decoded, str) else value


def _maybe(value: float | None) -> str | None:
    return None if value is None else str(value)
