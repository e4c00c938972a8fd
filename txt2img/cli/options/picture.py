"""Options for the picture: model, size, steps, guidance, sampler and seed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.types import field_option, given_fields
from txt2img.request import Sampler, Schedule
from txt2img.request.fields import Transparent
from txt2img.request.sampler_names import split_sampler

RANDOM_SEED = -1  # as in A1111

ModelName = Annotated[
    str | None,
    field_option(
        "model",
        metavar="NAME|PATH",
        autocompletion=completion.known_models,
        help="A .safetensors or .gguf file, diffusers folder, or name from txt2img models list.",
    ),
]


@dataclass(frozen=True)
class PromptOptions:
    """Where prompts come from, for the command that draws."""

    section: ClassVar = "Prompt"

    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to draw, in quotes.",
            show_default=False,
            autocompletion=completion.commands,
        ),
    ] = None
    # As in other programs.
    prompt_option: Annotated[str | None, typer.Option("--prompt", "-p", hidden=True)] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            metavar="FILE|-",
            help="Draw every line of a file (- is standard input): text, JSON or CSV. A "
            "line of text may end in options: a red apple --seed 7 --cfg 5",
        ),
    ] = None
    params_from: Annotated[
        Path | None,
        typer.Option(
            "--params-from",
            metavar="PICTURE",
            help="Take prompt and parameters from a picture; options given here override them.",
        ),
    ] = None


@dataclass(frozen=True)
class PictureOptions:
    """Options for one picture; None leaves one to the replayed record, config.toml or the model."""

    section: ClassVar = "Picture"

    negative: Annotated[
        str | None,
        field_option(
            "negative", metavar="TEXT", help="Negative prompt: what to keep out of the picture."
        ),
    ] = None
    model: ModelName = None
    width: Annotated[
        int | None,
        field_option(
            "width", metavar="PIXELS", help="Width, a multiple of 8 (default: the model's)."
        ),
    ] = None
    height: Annotated[
        int | None,
        field_option(
            "height", metavar="PIXELS", help="Height, a multiple of 8 (default: the model's)."
        ),
    ] = None
    steps: Annotated[
        int | None,
        field_option(
            "steps",
            metavar="N",
            help="Sampling steps (default: the model's): more are finer and slower.",
        ),
    ] = None
    cfg: Annotated[
        float | None,
        field_option(
            "cfg",
            metavar="X",
            help="CFG (guidance) scale: how closely to follow the prompt (default: the model's). "
            "1 turns guidance off.",
        ),
    ] = None
    sampler: Annotated[
        str | None,
        field_option(
            "sampler",
            metavar="NAME",
            autocompletion=completion.samplers,
            help=f"Sampling method, one of {len(Sampler)} (default: the model's): dpm++2m, euler, "
            "euler_a, ddim, unipc, lcm …; txt2img samplers lists them. Other programs' names work "
            'too: "DPM++ 2M Karras", dpmpp_2m_sde_gpu.',
        ),
    ] = None
    schedule: Annotated[
        str | None,
        field_option(
            "schedule",
            metavar="NAME",
            autocompletion=completion.schedules,
            help=f"Noise schedule, one of {len(Schedule)} (default: the model's): karras, "
            "trailing, sgm_uniform, exponential, beta …; txt2img samplers lists them.",
        ),
    ] = None
    sigmas: Annotated[
        str | None,
        field_option(
            "sigmas",
            metavar="A,B,…,0",
            seldom=True,
            help="The noise levels themselves, in place of --schedule and --steps: sigma / alpha "
            "of a diffusion model, 1 to 0 of a flow model.",
        ),
    ] = None
    eta: Annotated[
        float | None,
        field_option(
            "eta",
            metavar="X",
            help="Fresh noise in each step, 0 to 1, for samplers that take it (DDIM, ancestral, "
            "SDE).",
        ),
    ] = None
    tile: Annotated[
        str | None,
        field_option(
            "tile",
            metavar="x|y|xy",
            help="Seamless tiling: opposite edges continue each other.",
        ),
    ] = None
    transparent: Annotated[
        str | None,
        field_option(
            "transparent",
            metavar="[border]",
            help="Leave the background out, by a model with an alpha head; with border, what is of "
            "one colour at the picture's edge, by any model.",
        ),
    ] = None
    transparent_border: Annotated[bool, typer.Option("--transparent-border", hidden=True)] = False
    background: Annotated[
        str | None,
        field_option(
            "background",
            metavar="COLOR",
            help="A colour in place of the background: white, skyblue, #87ceeb.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        field_option(
            "seed",
            metavar="N",
            help="The same seed draws the same picture; random if omitted or -1, and printed.",
        ),
    ] = None
    count: Annotated[
        int | None,
        field_option(
            "count", metavar="N", help="Number of pictures, with the seeds SEED, SEED+1 and so on."
        ),
    ] = None

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request."""
        values = given_fields(self)
        if self.transparent_border:
            values["transparent"] = Transparent.BORDER
        if self.sampler and not self.schedule:  # A1111 once named both in one
            sampler, schedule = split_sampler(self.sampler, None)
            values |= {"sampler": sampler} | ({"schedule": schedule} if schedule else {})
        return values | ({"seed": None} if self.seed == RANDOM_SEED else {})


@dataclass(frozen=True)
class GuidanceOptions:
    """Options for guidance beside --cfg."""

    section: ClassVar = "Guidance"

    guidance: Annotated[
        float | None,
        field_option(
            "guidance",
            metavar="X",
            help="Distilled guidance scale, for models that take one beside --cfg: FLUX.1 dev.",
        ),
    ] = None
    skip_layer_guidance: Annotated[
        float | None,
        field_option(
            "skip_layer_guidance",
            metavar="X",
            help="Skip-layer guidance scale, for better anatomy with Stable Diffusion 3.5 medium: "
            "2.8 is usual.",
        ),
    ] = None
    cfg_rescale: Annotated[
        float | None,
        field_option(
            "cfg_rescale",
            metavar="X",
            help="Rescale guidance to avoid over-exposure at a high --cfg (0 to 1).",
        ),
    ] = None
    pag: Annotated[
        float | None,
        field_option(
            "pag",
            metavar="X",
            help="Perturbed-attention guidance scale, for clearer forms beside --cfg or without: 3 "
            "is usual. One pass more a step; U-Nets only, as --seg and --freeu.",
        ),
    ] = None
    seg: Annotated[
        str | None,
        field_option(
            "seg",
            metavar="X[,SIGMA]",
            help="Smoothed-energy guidance: scale, and blur of the queries: 3,100 is usual.",
        ),
    ] = None
    apg: Annotated[
        str | None,
        field_option(
            "apg",
            metavar="ETA[,NORM[,MOMENTUM]]",
            help="Adaptive projected guidance, which keeps colours at a high --cfg: 0,15,-0.5.",
        ),
    ] = None
    dynamic_thresholding: Annotated[
        str | None,
        field_option(
            "dynamic_thresholding",
            metavar="SCALE[,PERCENTILE]",
            help="Keep values in the range of a smaller --cfg, the mimic scale: 7,0.995.",
        ),
    ] = None
    freeu: Annotated[
        str | None,
        field_option(
            "freeu",
            metavar="B1,B2,S1,S2[,VERSION]",
            help="FreeU: 1.3,1.4,0.9,0.2 for Stable Diffusion 1, 1.3,1.4,0.9,0.2,1 its version 1.",
        ),
    ] = None
