"""The program that wrote a `parameters` text, and the settings that this decides.

Sources: A1111's modules/infotext_versions.py, its defaults on reading, and what it resolves
"Automatic" to; Forge's backend/modules/k_prediction.py; stable-diffusion.cpp's main.cpp.
"""

import re
from collections.abc import Callable, Mapping

from txt2img.errors import BadRequest
from txt2img.images.metadata.parsed import ParsedMetadata
from txt2img.request import Compat, Sampler, Schedule
from txt2img.request.prompt_syntax import edits
from txt2img.system.text import shown

Entries = Mapping[str, str]
NO_DOWNCAST = (1, 7, 0, 225)  # the first A1111 with noise levels in full precision
NEW_EDITS = (1, 6, 0, 0)  # the first A1111 that reads 5.0 in a prompt edit as a fraction
NO_RULES = "it was drawn {}, whose rules are not known here; txt2img's own are used"
GPU_RNG = (Compat.A1111_GPU, Compat.FORGE, Compat.SDCPP, Compat.NOVELAI)  # a GPU's noise by default
OWN_ENTRIES = {"Compat": "compat", "ENSD": "ensd"}
SCHEDULE_ENDS = ("karras", "exponential", "automatic", "uniform", "sgm uniform", "simple", "normal")
SDCPP_SOURCES = {"cuda": "nv", "cpu": "cpu"}
_A1111 = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:-(\d+))?")
_FORGE = re.compile(r"f\d+\.|neo\b|.*\bforge\b", re.IGNORECASE)


def generator_of(entries: Entries, prompt: str) -> ParsedMetadata:
    """What the program that wrote a text's entries implies: fields it leaves out, and notes."""
    version = entries.get("Version", "")
    if version.startswith("txt2img"):
        return _txt2img(entries)
    if "SDCPP" in entries or version.startswith("stable-diffusion.cpp"):
        return _sdcpp(entries)
    for name, read in PROGRAMS.items():
        if version.lower().startswith(name) or entries.get("App", "").lower() == name:
            return read(entries)
    if _FORGE.match(version):
        return _forge(entries)
    match = _A1111.match(version)
    if match or (not version and "Model hash" in entries):  # it wrote no version at first
        numbers = tuple(int(part or 0) for part in match.groups()) if match else (0,)
        generator = _a1111(entries)
        generator.notes.extend(_differences(numbers, prompt))
        return generator
    name = f"by {shown(version, 40)}" if version else "by a program that it does not name"
    return ParsedMetadata(notes=[NO_RULES.format(name)] if entries else [])


def _txt2img(entries: Entries) -> ParsedMetadata:
    values: dict[str, object] = {
        name: entries[key] for key, name in OWN_ENTRIES.items() if key in entries
    }
    if entries.get("RNG") == "NV" and values.get("compat") not in GPU_RNG:
        values["rng"] = "nv"
    return ParsedMetadata(values)


def _a1111(entries: Entries) -> ParsedMetadata:
    """A1111 and its forks."""
    source = entries.get("RNG", "GPU")
    generator = ParsedMetadata({"compat": Compat.A1111 if source == "CPU" else Compat.A1111_GPU})
    if source not in ("CPU", "GPU", "NV"):
        generator.notes.append(f"RNG: {shown(source, 40)} is not known; a GPU's is used")
    if entries.get("ENSD", "0") != "0":
        generator.values["ensd"] = entries["ENSD"]
    _add_schedule(generator, entries)
    return generator


def _forge(entries: Entries) -> ParsedMetadata:
    generator = _a1111(entries)
    generator.values["compat"] = Compat.FORGE
    if entries.get("RNG") == "CPU":
        generator.values["rng"] = "cpu"
    return generator


def _add_schedule(generator: ParsedMetadata, entries: Entries) -> None:
    """Add the schedule of A1111 where its text names none; note the solvers that differ."""
    name = entries.get("Sampler", "")
    end = next((end for end in SCHEDULE_ENDS if name.lower().endswith(f" {end}")), "")
    try:
        sampler = Sampler.parse(name[: len(name) - len(end)].strip())
    except BadRequest:
        return
    schedule = entries.get("Schedule type")
    if schedule == "Automatic" and sampler.automatic is not None:
        generator.values["schedule"] = sampler.automatic
    elif schedule is None and not end and sampler.automatic is not None:
        # Before 1.9 Karras stood in the sampler's name.
        generator.values["schedule"] = Schedule.LINEAR
    if sampler is Sampler.UNIPC:
        generator.notes.append("its UniPC is of order 3, variant bh1; here it is of order 2, bh2")
    if sampler is Sampler.LMS:
        generator.notes.append("its LMS is of order 4; here it is of order 3")


def _differences(version: tuple[int, ...], prompt: str) -> list[str]:
    """Notes on what an older A1111 did differently; (0,) is one that wrote no version."""
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


def _sdcpp(entries: Entries) -> ParsedMetadata:
    """stable-diffusion.cpp, whose noise is a GPU's unless it says otherwise."""
    generator = ParsedMetadata({"compat": Compat.SDCPP})
    initial = entries.get("RNG", "cuda")
    later = entries.get("Sampler RNG") or initial
    for key, name in (("RNG", initial), ("Sampler RNG", later)):
        if name not in SDCPP_SOURCES and (key == "RNG" or later != initial):
            generator.notes.append(f"{key}: {shown(name, 40)} is not known; a GPU's is used")
    first, then = (SDCPP_SOURCES.get(name, "nv") for name in (initial, later))
    if first != then:
        generator.values["rng"] = f"{first},{then}"
    elif first != "nv":
        generator.values["rng"] = first
    return generator


def _comfyui(entries: Entries) -> ParsedMetadata:
    return ParsedMetadata({"compat": Compat.COMFYUI})


def _without_rules(entries: Entries) -> ParsedMetadata:
    name = entries.get("App", entries.get("Version", ""))
    return ParsedMetadata(notes=[NO_RULES.format(f"by {shown(name, 40)}")])


PROGRAMS: Mapping[str, Callable[[Entries], ParsedMetadata]] = {
    "comfyui": _comfyui,
    "fooocus": _comfyui,  # it draws with ComfyUI's code
    "sd.next": _without_rules,
    "sdnext": _without_rules,
    "draw things": _without_rules,
}
