"""Which program wrote a `parameters` text, and what that decides which the text does not say.

A1111's file modules/infotext_versions.py, its defaults on reading, and what it resolves
"Automatic" to; Forge's backend/modules/k_prediction.py; stable-diffusion.cpp's main.cpp.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from txt2img.errors import BadRequest
from txt2img.request import Compat, Sampler, Schedule
from txt2img.request.prompt_syntax import edits
from txt2img.system.text import shown

Entries = Mapping[str, str]
NO_DOWNCAST = (1, 7, 0, 225)  # the first A1111 with noise levels in full precision
NEW_EDITS = (1, 6, 0, 0)  # and with a point for a part of the steps
NO_RULES = "it was drawn {}, whose rules are not had: txt2img's own are taken"
_A1111 = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-(\d+))?")
_FORGE = re.compile(r"f\d+\.|neo\b|.*\bforge\b", re.IGNORECASE)


@dataclass
class Writer:
    """A program, values for a Request's fields beside those it wrote, and what is not had."""

    name: str
    values: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def writer(entries: Entries, prompt: str) -> Writer:
    """What a text's entries tell of its writer."""
    version = entries.get("Version", "")
    if version.startswith("txt2img"):
        return _ours(entries)
    if "SDCPP" in entries or version.startswith("stable-diffusion.cpp"):
        return _sdcpp(entries)
    for sign, made in PROGRAMS.items():
        if version.lower().startswith(sign) or entries.get("App", "").lower() == sign:
            return made(entries)
    if _FORGE.match(version):
        found = _a1111(entries)
        found.name, found.values["compat"] = "Forge", Compat.FORGE
        if entries.get("RNG") == "CPU":
            found.values["rng"] = "cpu"
        return found
    if (match := _A1111.match(version)) or (not version and "Model hash" in entries):
        found = _a1111(entries)  # which wrote no version at first
        known = tuple(int(part or 0) for part in match.groups()) if match else (0,)
        found.notes += _older(known, prompt)
        return found
    who = f"by {shown(version, 40)}" if version else "by a program that it does not name"
    return Writer(version, notes=[NO_RULES.format(who)] if entries else [])


def _ours(entries: Entries) -> Writer:
    values: dict[str, object] = {n: entries[k] for k, n in _OWN.items() if k in entries}
    if entries.get("RNG") == "NV" and values.get("compat") not in CARDS:
        values["rng"] = "nv"
    return Writer("txt2img", values)


_OWN = {"Compat": "compat", "ENSD": "ensd"}
CARDS = (Compat.A1111_GPU, Compat.FORGE, Compat.SDCPP, Compat.NOVELAI)  # that draw with a card


def _a1111(entries: Entries) -> Writer:
    """A1111 and what is made from it."""
    source = entries.get("RNG", "GPU")
    compat = Compat.A1111 if source == "CPU" else Compat.A1111_GPU
    found = Writer("A1111", {"compat": compat})
    if source not in ("CPU", "GPU", "NV"):
        found.notes.append(f"RNG: {shown(source, 40)} is not known; a card's is taken")
    if entries.get("ENSD", "0") != "0":
        found.values["ensd"] = entries["ENSD"]
    _steps(found, entries)
    return found


def _steps(found: Writer, entries: Entries) -> None:
    """The schedule that A1111 took where its text names none, and solvers that are not its."""
    name = entries.get("Sampler", "")
    kind = next((s for s in SCHEDULE_ENDS if name.lower().endswith(f" {s}")), "")
    try:
        sampler = Sampler.parse(name[: len(name) - len(kind)].strip())
    except BadRequest:
        return
    said = entries.get("Schedule type")
    if said == "Automatic" and sampler.automatic is not None:
        found.values["schedule"] = sampler.automatic
    elif said is None and not kind and sampler.automatic is not None:
        found.values["schedule"] = Schedule.LINEAR  # before 1.9 Karras stood in the sampler's name
    if sampler is Sampler.UNIPC:
        found.notes.append("its UniPC is of order 3, variant bh1; here it is of order 2, bh2")
    if sampler is Sampler.LMS:
        found.notes.append("its LMS is of order 4; here it is of order 3")


SCHEDULE_ENDS = ("karras", "exponential", "automatic", "uniform", "sgm uniform", "simple", "normal")


def _older(version: tuple[int, ...], prompt: str) -> list[str]:
    """What A1111 did otherwise in older versions, (0,) if it wrote none."""
    notes = []
    if version < NO_DOWNCAST:
        notes.append(
            "A1111 before 1.8 rounded its noise levels to half precision, which is not done here: "
            "pixels differ a little"
        )
    if version < NEW_EDITS and any(
        "." in edit.when and float(edit.when) >= 1 for edit in edits(prompt)
    ):
        notes.append("A1111 before 1.6 counted a change such as 5.0 in steps; here it is a part")
    return notes


def _sdcpp(entries: Entries) -> Writer:
    """stable-diffusion.cpp, whose generator is a card's unless it says otherwise."""
    found = Writer("stable-diffusion.cpp", {"compat": Compat.SDCPP})
    source = entries.get("RNG", "cuda")
    later = entries.get("Sampler RNG") or source
    for key, name in (("RNG", source), ("Sampler RNG", later)):
        if name not in SDCPP_SOURCES and (key == "RNG" or later != source):
            found.notes.append(f"{key}: {shown(name, 40)} is not had; a card's is taken")
    first, then = (SDCPP_SOURCES.get(name, "nv") for name in (source, later))
    if first != then:
        found.values["rng"] = f"{first},{then}"
    elif first != "nv":
        found.values["rng"] = first
    return found


SDCPP_SOURCES = {"cuda": "nv", "cpu": "cpu"}


def _comfyui(entries: Entries) -> Writer:
    return Writer("ComfyUI", {"compat": Compat.COMFYUI})


def _unknown(entries: Entries) -> Writer:
    name = entries.get("App", entries.get("Version", ""))
    return Writer(name, notes=[NO_RULES.format(f"by {shown(name, 40)}")])


PROGRAMS: Mapping[str, Callable[[Entries], Writer]] = {
    "comfyui": _comfyui,
    "fooocus": _comfyui,  # whose code it draws with
    "sd.next": _unknown,
    "sdnext": _unknown,
    "draw things": _unknown,
}
