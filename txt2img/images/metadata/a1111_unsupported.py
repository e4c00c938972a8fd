"""Entries of a `parameters` text that decide a picture, and that a Request has no field for.

Every key is told unless it is known: extensions add keys of their own without end.
"""

from collections.abc import Mapping

from txt2img.images.metadata.a1111_hires import (
    BOTH,
    OTHERS,
    STRENGTH_KEY,
    hires_fields,
    hires_notes,
)
from txt2img.images.metadata.a1111_image import KEYS, image_fields
from txt2img.request.fields import FIELDS
from txt2img.system.text import shown

# Entries that a1111.py or a1111_versions.py reads.
READ = (
    *("Size", "Model hash", "VAE", "VAE hash", "ENSD", "RNG", "Sampler RNG", "Eta", "Eta DDIM"),
    *("Refiner", "Lora hashes", "TI hashes", "Compat", "Version", "App", "SDCPP", "Scheduler"),
    *("Lora weights", "Hires resize", BOTH, *OTHERS, *KEYS),
    *("Dynamic thresholding enabled", "Mimic scale", "Threshold percentile"),
    *("freeu_enabled", "freeu_b1", "freeu_b2", "freeu_s1", "freeu_s2"),
)
# Entries that decide nothing: other words for what is drawn, its origin, its time.
NEUTRAL = (
    *("Template", "Negative Template", "Wildcard prompt", "Raw prompt", "Raw negative prompt"),
    *("Hashes", "Civitai resources", "Civitai metadata", "Created Date", "Date", "Time", "User"),
    *("Batch size", "Batch pos", "Batch index", "Index", "Pipeline", "Backend"),
    "Guidance",  # stable-diffusion.cpp writes it for models that have none
    "Metadata Scheme",
)
OFF = ("", "0", "0.0", "None", "none", "False", "false", "Disable")
# Values that decide nothing, besides those that mean off.
USUAL = {
    "Denoising strength": "1.0",
    "Emphasis": "Original",
    "Noise Schedule": "Default",
    "VAE Decoder": "Full",
    "Strength": "1.0",  # Draw Things
    "Diffusion in Low Bits": "Automatic",  # Forge
    # Dynamic thresholding's, which are the only ones here.
    "Separate Feature Channels": "True",
    "Scaling Startpoint": "MEAN",
    "Variability Measure": "AD",
    "Interpolate Phi": "1",
    "Mimic mode": "Constant",
    "CFG mode": "Constant",
    "freeu_start": "0",
    "freeu_end": "1",
}
KNOWN = {*READ, *NEUTRAL, *(row.a1111 for row in FIELDS.values())}


def unsupported(entries: Mapping[str, str]) -> list[str]:
    """A note for each entry that decided the picture and cannot be carried over."""
    read = {STRENGTH_KEY} if hires_fields(entries) else set()
    if image_fields(entries):
        read |= {STRENGTH_KEY, "Strength"}
    notes = [
        f"{key}: {shown(value, 40)} is not carried over"
        for key, value in entries.items()
        if key not in KNOWN and key not in read and not key.startswith("ControlNet")
        if value not in OFF and value != USUAL.get(key)
    ]
    return [*notes, *hires_notes(entries)]
