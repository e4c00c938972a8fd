"""Few-step models and LoRAs are recognised by their published names and schedulers."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import adapters
from txt2img.errors import BadFile
from txt2img.request import Defaults, Request, Sampler, Schedule
from txt2img.request.adapters import Lora
from txt2img.request.resolve import AdapterPaths
from txt2img.weights.distilled import from_loras, from_name, from_scheduler

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
def test_a_name_decides_the_defaults(
    name: str, side: int, steps: int, cfg: float, sampler: Sampler, schedule: Schedule
) -> None:
    assert from_name(FULL, name) == Defaults(side, side, steps, cfg, sampler, schedule)


@pytest.mark.parametrize(
    "name", ["sd_xl_base_1.0", "hyperrealism_v3", "v1-5-pruned-emaonly", "trained_500steps", ""]
)
def test_other_names_change_nothing(name: str) -> None:
    assert from_name(FULL, name) == FULL


SCHEDULERS: list[tuple[dict[str, object], Sampler]] = [
    ({"_class_name": "LCMScheduler"}, Sampler.LCM),
    ({"_class_name": "TCDScheduler"}, Sampler.TCD),
    (
        {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
        Sampler.EULER_A,
    ),
]


@pytest.mark.parametrize(("config", "sampler"), SCHEDULERS)
def test_a_scheduler_decides_the_defaults(config: dict[str, object], sampler: Sampler) -> None:
    drawn = from_scheduler(FULL, config, "my-model")
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
    assert from_scheduler(FULL, config, "my-model") == FULL
    assert from_scheduler(FULL, config, "my-turbo").steps == 8


LORAS = [
    ("lcm-lora-sdv1-5", 4, 1.0, Sampler.LCM),
    ("sdxl_lightning_8step_lora", 8, 1.0, Sampler.EULER),
    ("Hyper-SD15-8steps-lora", 8, 1.0, Sampler.DDIM),
    ("Hyper-SDXL-8steps-CFG-lora", 8, None, Sampler.DDIM),
    ("dmd2_sdxl_4step_lora_fp16", 4, 1.0, Sampler.LCM),
    ("sd_xl_turbo_lora_v1", 4, 1.0, Sampler.EULER_A),
]


def lora(folder: Path, name: str, said: str | None = None) -> AdapterPaths:
    """The paths of one LoRA, with the defaults `said` in its metadata."""
    metadata = None if said is None else {"txt2img": said}
    path = adapters.write(folder / f"{name}.safetensors", {"a": torch.zeros(1)}, metadata)
    return AdapterPaths({name: path})


@pytest.mark.parametrize(("name", "steps", "cfg", "sampler"), LORAS)
def test_a_few_step_lora_fills_the_requests_blanks(
    name: str, steps: int, cfg: float | None, sampler: Sampler, tmp_path: Path
) -> None:
    library, asked = lora(tmp_path, name), Request("a", loras=(Lora(name),))
    filled = from_loras(asked, library, FULL)
    assert (filled.steps, filled.cfg, filled.sampler, filled.schedule) == (
        steps,
        cfg,
        sampler,
        TRAILING,
    )
    assert (filled.width, filled.height) == (None, None)
    mine = replace(asked, steps=6, sampler=Sampler.HEUN)
    assert from_loras(mine, library, FULL) == replace(mine, cfg=cfg, schedule=TRAILING)


@pytest.mark.parametrize("name", ["turbo_cars", "ink_8000steps", "lightning_magic", "pixel-art"])
def test_other_loras_and_those_not_used_change_nothing(name: str, tmp_path: Path) -> None:
    asked = Request("a", loras=(Lora(name),))
    assert from_loras(asked, lora(tmp_path, name), FULL) == asked
    off = Request("a", loras=(Lora("lcm", unet=0.0),))
    assert from_loras(off, lora(tmp_path, "lcm"), FULL) == off


def test_a_files_metadata_comes_before_its_name(tmp_path: Path) -> None:
    said = '{"steps": 3, "cfg": 1.5, "sampler": "heun", "schedule": "linear"}'
    filled = from_loras(Request("a", loras=(Lora("lcm"),)), lora(tmp_path, "lcm", said), FULL)
    assert (filled.steps, filled.cfg) == (3, 1.5)
    assert (filled.sampler, filled.schedule) == (Sampler.HEUN, Schedule.LINEAR)
    half = from_loras(Request("a", loras=(Lora("x"),)), lora(tmp_path, "x", '{"cfg": 1}'), FULL)
    assert half == Request("a", loras=(Lora("x"),), cfg=1.0)  # the rest is the model's


@pytest.mark.parametrize(
    ("said", "told"),
    [('{"steps": "3"}', "steps"), ('{"sampler": "x"}', "x.safetensors"), ("[", "x.safetensors")],
)
def test_bad_values_in_metadata_are_named(said: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=told):
        from_loras(Request("a", loras=(Lora("x"),)), lora(tmp_path, "x", said), FULL)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    asked = Request("a", loras=(Lora("x"),))
    assert from_loras(asked, lora(tmp_path, "x", '{"steps": 3}'), FULL).steps == 3
    library = lora(tmp_path, "x", '{"steps": 5}')
    os.utime(library.loras["x"], ns=(1, 1))
    assert from_loras(asked, library, FULL).steps == 5


def test_a_model_draws_with_its_own_few_step_lora_where_a_request_leaves_it_to_it(
    tmp_path: Path,
) -> None:
    said = '{"steps": 4, "cfg": 1, "sampler": "lcm", "schedule": "trailing"}'
    library, own = lora(tmp_path, "few-steps", said), replace(FULL, lora="few-steps")
    quick = from_loras(Request("a", seed=3, width=512), library, own)
    assert quick == Request(
        "a",
        seed=3,
        width=512,
        loras=(Lora("few-steps"),),
        steps=4,
        cfg=1.0,
        sampler=Sampler.LCM,
        schedule=TRAILING,
    )
    for plain in (
        Request("a", steps=30),
        Request("a", cfg=7.5),
        Request("a", sampler=Sampler.HEUN),
        Request("a", negative="blurry"),
        Request("a", loras=(Lora("few-steps", 0.0),)),
    ):
        assert from_loras(plain, library, own) == plain
    assert from_loras(Request("a"), library, FULL) == Request("a")
