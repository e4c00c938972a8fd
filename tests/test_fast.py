"""Models of few steps, told by their names and schedulers as they are published."""

import pytest

from txt2img.request import Defaults, Sampler, Schedule
from txt2img.weights.fast import by_name, by_scheduler

FULL = Defaults(1024, 1024, 30, 5.0, Sampler.DPMPP_2M, Schedule.KARRAS)
TRAILING = Schedule.TRAILING
NAMES = [
    ("sd_xl_turbo_1.0_fp16", 512, 4, 1.0, Sampler.EULER_A, TRAILING),
    ("sd-turbo", 512, 4, 1.0, Sampler.EULER_A, TRAILING),
    ("sdxl_lightning_4step", 1024, 4, 1.0, Sampler.EULER, TRAILING),
    ("sdxl_lightning_8step", 1024, 8, 1.0, Sampler.EULER, TRAILING),
    ("Hyper-SDXL-1step-Unet", 1024, 1, 1.0, Sampler.TCD, TRAILING),
    ("realisticVision_v51Hyper", 1024, 8, 1.0, Sampler.TCD, TRAILING),
    ("Hyper-SD15-4steps", 1024, 4, 1.0, Sampler.DDIM, TRAILING),
    ("sdxl-tcd", 1024, 8, 1.0, Sampler.TCD, TRAILING),
    ("LCM_Dreamshaper_v7", 1024, 4, 1.0, Sampler.LCM, TRAILING),
    ("dreamshaper_8LCM", 1024, 4, 1.0, Sampler.LCM, TRAILING),
    ("model_dmd2_sdxl_4step", 1024, 4, 1.0, Sampler.LCM, TRAILING),
    ("DreamShaperXL_Turbo_v2", 1024, 8, 2.0, Sampler.DPMPP_SDE, Schedule.KARRAS),
    ("Juggernaut_RunDiffusion_Lightning", 1024, 8, 2.0, Sampler.DPMPP_SDE, Schedule.KARRAS),
]


@pytest.mark.parametrize(("name", "side", "steps", "cfg", "sampler", "schedule"), NAMES)
def test_names_tell_what_a_model_draws_best_with(
    name: str, side: int, steps: int, cfg: float, sampler: Sampler, schedule: Schedule
) -> None:
    assert by_name(FULL, name) == Defaults(side, side, steps, cfg, sampler, schedule)


@pytest.mark.parametrize(
    "name", ["sd_xl_base_1.0", "hyperrealism_v3", "v1-5-pruned-emaonly", "trained_500steps", ""]
)
def test_other_names_change_nothing(name: str) -> None:
    assert by_name(FULL, name) == FULL


SCHEDULERS: list[tuple[dict[str, object], Sampler]] = [
    ({"_class_name": "LCMScheduler"}, Sampler.LCM),
    ({"_class_name": "TCDScheduler"}, Sampler.TCD),
    (
        {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
        Sampler.EULER_A,
    ),
]


@pytest.mark.parametrize(("config", "sampler"), SCHEDULERS)
def test_schedulers_tell_what_a_model_draws_best_with(
    config: dict[str, object], sampler: Sampler
) -> None:
    drawn = by_scheduler(FULL, config, "my-model")
    assert (drawn.sampler, drawn.schedule, drawn.cfg) == (sampler, TRAILING, 1.0)
    assert (drawn.width, drawn.steps < 10) == (1024, True)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        {
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
        {},
    ],
)
def test_other_schedulers_leave_it_to_the_name(config: dict[str, object]) -> None:
    assert by_scheduler(FULL, config, "my-model") == FULL
    assert by_scheduler(FULL, config, "my-turbo").steps == 8
