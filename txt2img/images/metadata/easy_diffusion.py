"""Easy Diffusion's metadata: a text for each setting."""

from collections.abc import Mapping

from txt2img.images.metadata.a1111_versions import NO_RULES
from txt2img.images.metadata.parsed import ParsedMetadata, from_table

FIELDS = {
    "negative_prompt": "negative",
    "guidance_scale": "cfg",
    "num_inference_steps": "steps",
    "sampler_name": "sampler",
    "use_stable_diffusion_model": "model",
    "use_vae_model": "vae",
    **{name: name for name in ("prompt", "seed", "width", "height")},
}


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata, known by its key for the steps."""
    if "num_inference_steps" not in texts or "prompt" not in texts:
        return None
    parsed = from_table(texts, FIELDS)
    parsed.notes.append(NO_RULES.format("by Easy Diffusion"))
    return parsed
