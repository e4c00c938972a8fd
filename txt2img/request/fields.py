"""Fields of a Request, each declared once: type, default, flags, range, A1111 key, spellings.

What other modules know of the fields (options, prompt files, A1111's text,
records) they derive from FIELDS.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from types import UnionType
from typing import Annotated, get_args, get_origin, get_type_hints

from txt2img.errors import BadRequest
from txt2img.request.adapters import (
    Embedding,
    Lora,
    Refiner,
    VAERef,
    object_from_json,
    objects_from_json,
)
from txt2img.request.control import Control, ControlMode, controls_from_json
from txt2img.request.enhance import Enhancer
from txt2img.request.input_image import (
    ImageRef,
    InpaintFill,
    Margins,
    Resize,
    image_from_json,
    images_from_json,
    margins_from_json,
)
from txt2img.request.interval import Interval, interval_from_json
from txt2img.request.ip_adapter import IPAdapterUse, ip_adapters_from_json
from txt2img.request.preprocess import Preprocess, preprocesses_from_json
from txt2img.request.sampler_names import Compat, Name, NameRow, Sampler, Schedule
from txt2img.request.sampling import (
    parse_apg,
    parse_dynamic_thresholding,
    parse_freeu,
    parse_seg,
    parse_sigmas,
)
from txt2img.request.upscalers import SCALE_MAX, UpscalerRef, upscaler_from_json
from txt2img.system.text import shown

SEEDS = 2**64
STEPS = range(1, 10_001)
SIDES = range(64, 8193, 8)
CFG_MAX = 1000.0  # people use up to 30; networks in float32 overflow from 1e30 on
FLOAT_MAX = sys.float_info.max
RNG = r"(cpu|nv(:[1-9]\d{0,9})?)"
RNG_HELP = "cpu, nv or nv:THREADS, or two of them with a comma between: the start's and the steps'"
TEXTUAL = (
    str | int | float | Interval | ImageRef | Margins | UpscalerRef
)  # kinds whose values are one text
COLOUR = r"#[0-9a-fA-F]{3}|#[0-9a-fA-F]{6}|[a-zA-Z]{3,20}"
COLOUR_HELP = "a colour such as white, skyblue or #87ceeb"
HIRES_MAX = 8.0  # times
SWITCH = 0.8  # where A1111 and diffusers let the refiner take over
# Options that are no fields but choose the model, as --model does.
COMPONENTS = ("unet", "text_encoder")
# Records hold all fields up to this one, later ones only if they differ from their defaults: so
# records that were written before these existed stay equal.
LAST_IN_EVERY_RECORD = "negative_template"


class Tile(Name):
    """The axes along which a picture is seamless: a tile of a larger one."""

    NONE = NameRow("none", aliases=("false",), is_default=True)
    X = NameRow("x")
    Y = NameRow("y")
    XY = NameRow("xy", "True", ("true",))  # the only one that A1111 has


class Transparent(Name):
    """What makes a picture's ground transparent: the model itself, or its even border."""

    NONE = NameRow("none", aliases=("false",), is_default=True)
    MODEL = NameRow("model", aliases=("true",))
    BORDER = NameRow("border")


def check_colour(text: str) -> None:
    """Raise BadRequest for a word that names no colour."""
    from PIL import ImageColor

    if text.startswith("#") or text.lower() in ImageColor.colormap:
        return
    near = get_close_matches(text.lower(), ImageColor.colormap, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise BadRequest(f"background must be {COLOUR_HELP}; got {shown(text)}{hint}")


@dataclass(frozen=True)
class Field:
    """One field's row: all but its type and default, which the declaration gives."""

    flags: tuple[str, ...] = ()  # the option's, the long one first
    aliases: tuple[str, ...] = ()  # other programs' flags; a single letter in prompt files alone
    a1111: str = ""  # the key in A1111's text whose value is the field's
    neutral: object = None  # a value that A1111's text leaves out
    allowed: range | None = None  # of a whole number
    maximum: float = FLOAT_MAX  # of a number from 0 up
    pattern: str = ""  # of a text
    pattern_help: str = ""  # the pattern in a message's words
    parse: Callable[[str], object] | None = None  # of a text; raises BadRequest for a wrong one
    from_json: Callable[[object], object] | None = None  # other than by its type
    listed: bool = False  # a text is one of several values, or some of them separated by bars
    same_for_all: bool = False  # no line of a prompt file may change it
    option: str = ""  # the command's parameter; default: the field's name
    # Filled in from the declaration:
    name: str = ""
    kind: type = str
    default: object = None
    optional: bool = False  # None is allowed: the model decides
    omitted: bool = False  # from records, at its default

    @property
    def label(self) -> str:
        """The name in messages: the option's without hyphens, else the field's."""
        return self.flags[0].removeprefix("--") if self.flags else self.name

    @property
    def scalar(self) -> bool:
        """Whether an option's text is the value itself (a LoRA's is a file's name)."""
        return bool(self.flags) and issubclass(self.kind, TEXTUAL)


@dataclass(frozen=True)
class RequestFields:
    """Fields of a request; None means that the model decides."""

    prompt: Annotated[str, Field(aliases=("--prompt",))]
    negative: Annotated[
        str, Field(("--negative", "-n"), ("--negative-prompt", "--neg-prompt", "--neg", "--n"))
    ] = ""
    model: Annotated[str, Field(("--model", "-m"), a1111="Model", same_for_all=True)] = "default"
    width: Annotated[  # pixels
        int | None, Field(("--width", "-W"), ("--w",), allowed=SIDES)
    ] = None
    height: Annotated[int | None, Field(("--height", "-H"), ("--h",), allowed=SIDES)] = None
    steps: Annotated[
        int | None,
        Field(
            ("--steps",),
            ("--num-inference-steps", "--sampling-steps", "--sample-steps", "--ddim-steps", "--s"),
            a1111="Steps",
            allowed=STEPS,
        ),
    ] = None
    cfg: Annotated[
        float | None,
        Field(
            ("--cfg",),
            ("--cfg-scale", "--guidance-scale", "--l"),
            a1111="CFG scale",
            maximum=CFG_MAX,
        ),
    ] = None
    cfg_rescale: Annotated[
        float | None,
        Field(
            ("--cfg-rescale",),
            ("--guidance-rescale",),
            a1111="CFG rescale",
            maximum=1.0,
            neutral=0.0,
        ),
    ] = None
    eta: Annotated[float | None, Field(("--eta",), ("--ddim-eta",), maximum=1.0)] = None
    sampler: Annotated[
        Sampler | None,
        Field(("--sampler",), ("--sampler-name", "--sampling-method", "--ss"), a1111="Sampler"),
    ] = None
    schedule: Annotated[
        Schedule | None,
        Field(("--schedule",), ("--schedule-type",), a1111="Schedule type"),
    ] = None
    seed: Annotated[
        int | None, Field(("--seed",), ("--d",), a1111="Seed", allowed=range(SEEDS))
    ] = None
    count: Annotated[
        int,
        Field(
            ("--count",),
            (
                "--n-iter",
                "--num-images",
                "--num-images-per-prompt",
                "--batch-count",
                "--iterations",
            ),
            allowed=range(1, 100_001),
        ),
    ] = 1
    loras: Annotated[tuple[Lora, ...], Field(("--lora",), option="lora")] = ()
    embeddings: Annotated[tuple[Embedding, ...], Field()] = ()
    vae: Annotated[  # in place of the model's own
        VAERef | None, Field(("--vae",))
    ] = None
    # What the prompts were made from, if from wildcards.
    template: Annotated[str, Field()] = ""
    negative_template: Annotated[str, Field()] = ""
    # Whose rules; None: our own.
    compat: Annotated[Compat | None, Field(("--compat",))] = None
    # A1111's count: the text encoder's last layers, 1 is all of it.
    clip_skip: Annotated[
        int | None, Field(("--clip-skip",), a1111="Clip skip", allowed=range(1, 13))
    ] = None
    # The noise of another seed, mixed into this one's.
    subseed: Annotated[
        int | None, Field(("--subseed",), a1111="Variation seed", allowed=range(SEEDS))
    ] = None
    subseed_strength: Annotated[
        float, Field(("--subseed-strength",), a1111="Variation seed strength", maximum=1.0)
    ] = 0.0
    # The model that draws the last steps, and the fraction of the steps before it takes over.
    refiner: Annotated[Refiner | None, Field(("--refiner",))] = None
    refiner_switch: Annotated[float, Field(a1111="Refiner switch at", maximum=1.0)] = SWITCH
    # Where between noise (0) and picture (1) guidance is on; None: where the model says.
    cfg_interval: Annotated[
        Interval | None,
        Field(("--cfg-interval",), a1111="CFG interval", from_json=interval_from_json),
    ] = None
    # A1111's eta noise seed delta: added to the seed for the noise of steps.
    ensd: Annotated[
        int | None, Field(("--ensd",), ("--eta-noise-seed-delta",), allowed=range(SEEDS))
    ] = None
    # Random generator: cpu, nv, or nv:N, a card of N threads; after a comma, that of the steps.
    rng: Annotated[
        str | None, Field(("--rng",), pattern=rf"{RNG}(,{RNG})?", pattern_help=RNG_HELP)
    ] = None
    # DeepCache: the network's deep layers are computed in every N-th step.
    reuse: Annotated[
        int,
        Field(
            ("--deepcache",),
            ("--reuse",),
            a1111="Deep reuse",
            allowed=range(1, 101),
            option="deepcache",
        ),
    ] = 1
    # Fraction of the tokens of the largest maps merged with similar ones (ToMe).
    token_merging: Annotated[
        float,
        Field(
            ("--token-merging",),
            ("--token-merging-ratio", "--tome"),
            a1111="Token merging",
            maximum=0.75,
        ),
    ] = 0.0
    # Seamless tiling, by circular padding of convolutions.
    tile: Annotated[Tile | None, Field(("--tile",), ("--tiling",), a1111="Tiling")] = None
    # The picture to begin from; None: noise alone. The fields after it need one.
    image: Annotated[
        ImageRef | None,
        Field(
            ("--image", "-i"),
            ("--init-img", "--init-image", "--image-path", "--i"),
            from_json=image_from_json,
        ),
    ] = None
    # The share of the steps that is drawn, from the last ones; None: the model decides.
    strength: Annotated[
        float | None,
        Field(("--strength",), ("--denoising-strength", "--denoise", "--t"), maximum=1.0),
    ] = None
    resize: Annotated[Resize | None, Field(("--resize",), ("--resize-mode",))] = None
    # Where to repaint: white; None: where the picture is transparent, or all of it.
    mask: Annotated[
        ImageRef | None,
        Field(
            ("--mask",), ("--mask-image", "--mask-img", "--mask-path"), from_json=image_from_json
        ),
    ] = None
    # Pixels by which its border is softened; None: as the program does whose rules are followed.
    mask_blur: Annotated[float | None, Field(("--mask-blur",), maximum=1024.0)] = None
    mask_invert: Annotated[bool, Field(("--mask-invert",), ("--inpainting-mask-invert",))] = False
    inpaint_fill: Annotated[
        InpaintFill | None, Field(("--inpaint-fill",), ("--inpainting-fill",))
    ] = None
    # Draw the masked part alone, with so many pixels around it; None: the whole picture.
    only_masked: Annotated[
        int | None,
        Field(("--only-masked",), ("--inpaint-full-res-padding",), allowed=range(8193)),
    ] = None
    outpaint: Annotated[Margins | None, Field(("--outpaint",), from_json=margins_from_json)] = None
    # How closely an instruction model follows its picture.
    image_cfg: Annotated[
        float,
        Field(
            ("--image-cfg",),
            ("--image-cfg-scale", "--image-guidance-scale", "--img-cfg-scale"),
            a1111="Image CFG scale",
        ),
    ] = 1.5
    # A second pass at a larger size (A1111's hires. fix): so many times larger, or to a size.
    hires: Annotated[
        float | None,
        Field(("--hires",), ("--hr-scale",), a1111="Hires upscale", maximum=HIRES_MAX),
    ] = None
    hires_width: Annotated[
        int | None, Field(("--hires-width",), ("--hr-resize-x",), allowed=range(64, 8193))
    ] = None
    hires_height: Annotated[
        int | None, Field(("--hires-height",), ("--hr-resize-y",), allowed=range(64, 8193))
    ] = None
    # What enlarges the first pass; and how much of it is drawn anew, in how many steps.
    hires_upscaler: Annotated[
        UpscalerRef | None,
        Field(
            ("--hires-upscaler",),
            ("--hr-upscaler",),
            a1111="Hires upscaler",
            from_json=upscaler_from_json,
        ),
    ] = None
    hires_strength: Annotated[
        float | None, Field(("--hires-strength",), ("--hires-denoising-strength",), maximum=1.0)
    ] = None
    hires_steps: Annotated[
        int | None,
        Field(
            ("--hires-steps",),
            ("--hr-second-pass-steps",),
            a1111="Hires steps",
            allowed=STEPS,
        ),
    ] = None
    # How many times larger the finished picture is made; None: by the upscaler's own scale.
    upscale_by: Annotated[
        float | None,
        Field(("--upscale-by",), a1111="Postprocess upscale by", maximum=SCALE_MAX),
    ] = None
    upscale: Annotated[
        UpscalerRef | None,
        Field(("--upscale",), a1111="Postprocess upscaler", from_json=upscaler_from_json),
    ] = None
    # Pictures that models of edits look at (FLUX.1 Kontext, FLUX.2), in the prompt's order.
    references: Annotated[
        tuple[ImageRef, ...],
        Field(
            ("--reference",),
            ("--ref-image", "--reference-image"),
            from_json=images_from_json,
            listed=True,
            option="reference",
        ),
    ] = ()
    # The distilled guidance scale, which some networks take as an input.
    guidance: Annotated[
        float | None,
        Field(
            ("--guidance",),
            ("--distilled-cfg-scale", "--distilled-guidance"),
            a1111="Distilled CFG Scale",
        ),
    ] = None
    # How far to go away from the output of a network without some of its layers.
    skip_layer_guidance: Annotated[
        float | None,
        Field(
            ("--skip-layer-guidance",),
            ("--slg", "--slg-scale"),
            a1111="Skip layer guidance",
            maximum=CFG_MAX,
        ),
    ] = None
    # What makes the ground transparent, and a colour in place of the ground.
    transparent: Annotated[Transparent | None, Field(("--transparent",), a1111="Transparent")] = (
        None
    )
    background: Annotated[
        str | None,
        Field(
            ("--background",),
            ("--bg",),
            a1111="Background",
            pattern=COLOUR,
            pattern_help=COLOUR_HELP,
            parse=check_colour,
        ),
    ] = None
    # ControlNets, each with a picture that it follows; and whether they or the prompt count more.
    controls: Annotated[
        tuple[Control, ...],
        Field(
            ("--control",),
            ("--controlnet", "--control-net", "--t2i-adapter"),
            from_json=controls_from_json,
            listed=True,
            option="control",
        ),
    ] = ()
    control_mode: Annotated[ControlMode | None, Field(("--control-mode",))] = None
    # What makes the ControlNets' maps of their pictures: one for all, or one for each.
    preprocess: Annotated[
        tuple[Preprocess, ...],
        Field(
            ("--preprocess",),
            ("--preprocessor", "--control-preprocess", "--controlnet-module"),
            from_json=preprocesses_from_json,
            listed=True,
        ),
    ] = ()
    # IP-Adapters, each with pictures as a prompt; and where each counts: white.
    ip_adapters: Annotated[
        tuple[IPAdapterUse, ...],
        Field(
            ("--ip-adapter",),
            ("--ipadapter",),
            from_json=ip_adapters_from_json,
            listed=True,
            option="ip_adapter",
        ),
    ] = ()
    ip_masks: Annotated[
        tuple[ImageRef, ...],
        Field(
            ("--ip-mask",),
            ("--ip-adapter-mask",),
            from_json=images_from_json,
            listed=True,
            option="ip_mask",
        ),
    ] = ()

    # What the user wrote, if a language model made the prompt of it, and which one.
    written: Annotated[str, Field()] = ""
    enhancer: Annotated[Enhancer | None, Field()] = None
    # The levels themselves in place of a schedule, falling to 0.
    sigmas: Annotated[str | None, Field(("--sigmas",), a1111="Sigmas", parse=parse_sigmas)] = None
    # How far to go away from what is drawn with weaker self-attention: none, or blurred.
    pag: Annotated[
        float | None,
        Field(("--pag",), ("--pag-scale",), a1111="PAG scale", maximum=CFG_MAX),
    ] = None
    seg: Annotated[
        str | None, Field(("--seg",), ("--seg-scale",), a1111="SEG", parse=parse_seg)
    ] = None
    # Other ways to guide by cfg: projected, or in the range of a smaller scale.
    apg: Annotated[str | None, Field(("--apg",), a1111="APG", parse=parse_apg)] = None
    dynamic_thresholding: Annotated[
        str | None,
        Field(
            ("--dynamic-thresholding",),
            ("--mimic-scale",),
            a1111="Mimic CFG",
            parse=parse_dynamic_thresholding,
        ),
    ] = None
    # Factors of a U-Net's own features and of its skip connections.
    freeu: Annotated[str | None, Field(("--freeu",), a1111="FreeU", parse=parse_freeu)] = None


def _rows() -> Iterator[Field]:
    """The rows, completed from the declarations."""
    later = False
    for name, hint in get_type_hints(RequestFields, include_extras=True).items():
        annotation, row = get_args(hint)
        parts = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
        kind, items = get_origin(parts[0]) or parts[0], get_args(parts[0])
        from_json = row.from_json
        if items and not from_json:
            from_json = partial(objects_from_json, items[0], name)
        elif isinstance(kind, type) and is_dataclass(kind) and not from_json:
            from_json = partial(object_from_json, kind, name)
        yield replace(
            row,
            name=name,
            kind=kind,
            default=getattr(RequestFields, name, None),
            optional=len(parts) > 1,
            omitted=later,
            option=row.option or name,
            from_json=from_json,
        )
        later = later or name == LAST_IN_EVERY_RECORD


FIELDS: Mapping[str, Field] = {row.name: row for row in _rows()}
