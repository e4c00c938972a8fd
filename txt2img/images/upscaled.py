"""Records of upscaled pictures: what a picture says of itself, and A1111's words for the rest."""

from collections.abc import Mapping
from dataclasses import replace

from txt2img.images.metadata import a1111
from txt2img.images.record import ImageInfo, metadata
from txt2img.request.upscalers import UpscalerRef

BY, UPSCALER, TO = "Postprocess upscale by", "Postprocess upscaler", "Postprocess upscale to"
NO_PROMPT = "postprocessing"  # A1111's text in a picture that has no prompt


def upscaled_texts(
    info: ImageInfo, upscaler: UpscalerRef, by: float, before: str, after: str
) -> dict[str, str]:
    """The texts of an upscaled picture; `before` and `after` are the hashes of its pixels.

    If nothing but this program has touched the picture, its request with the upscaler draws the
    larger one, and is what the record says. Else the record has no hash of pixels.
    """
    texts, request = dict(info.texts), info.request
    if request is not None and "txt2img" in texts:
        whole = request.upscale is None and before == info.pixels_sha256
        if request.upscale is None:
            request = replace(request, upscale=upscaler, upscale_by=by)
        return texts | metadata(request, info.origin, after if whole else "", info.first_seed)
    added = {BY: f"{by:g}", UPSCALER: upscaler.label}
    text = texts.get("parameters", "")
    parsed = a1111.parse(text)
    if parsed.entries:
        entries = {**parsed.entries, **added}
        return texts | {"parameters": str(replace(parsed, entries=entries))}
    return texts | {NO_PROMPT: _line(added)}


def _line(entries: Mapping[str, str]) -> str:
    return str(a1111.Infotext("", entries=dict(entries)))
