"""imaginAIry's metadata: a JSON object in a JPEG's UserComment."""

from collections.abc import Mapping

from txt2img.images.metadata.a1111_versions import NO_RULES
from txt2img.images.metadata.parsed import (
    ParsedMetadata,
    from_table,
    json_table,
    list_in,
    model_name,
    table_in,
)

FIELDS = {
    "prompt_text": "prompt",
    "negative_prompt": "negative",
    "prompt_strength": "cfg",
    "sampler_type": "sampler",
    "solver_type": "sampler",
    "model_weights": "model",
    **{name: name for name in ("prompt", "seed", "steps", "width", "height", "model")},
}


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata, if it has a prompt of that form. ValueError."""
    if not texts.get("UserComment", "").startswith("{"):
        return None
    table = table_in(json_table(texts["UserComment"]), "prompt")
    if not table:
        return None
    parsed = from_table(table, FIELDS)
    parsed.notes.append(NO_RULES.format("by imaginAIry"))
    size = list_in(table, "size")
    if len(size) == 2:
        parsed.values.update(width=size[0], height=size[1])
    for name in ("prompt", "negative"):
        _join_parts(parsed, name)
    if "model" in parsed.values:
        parsed.values["model"] = model_name(parsed.values["model"])
    return parsed


def _join_parts(parsed: ParsedMetadata, name: str) -> None:
    """Join a prompt of weighted parts."""
    if not isinstance(listed := parsed.values.get(name), list):
        return
    parts = [part for part in listed if isinstance(part, dict)]
    parsed.values[name] = ", ".join(str(part.get("text", "")) for part in parts)
    if any(part.get("weight") not in (1, None) for part in parts):
        parsed.notes.append(f"the weights of its {name}'s parts are not carried over")
