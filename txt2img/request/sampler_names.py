"""Sampler and schedule names in A1111's spelling."""

from txt2img.request.request import Sampler, Schedule

SAMPLER_NAMES = {
    Sampler.DDPM: "DDPM",
    Sampler.DDIM: "DDIM",
    Sampler.EULER: "Euler",
    Sampler.EULER_A: "Euler a",
    Sampler.HEUN: "Heun",
    Sampler.LMS: "LMS",
    Sampler.DPMPP_2M: "DPM++ 2M",
    Sampler.DPMPP_2M_SDE: "DPM++ 2M SDE",
    Sampler.DPMPP_SDE: "DPM++ SDE",
    Sampler.UNIPC: "UniPC",
    Sampler.LCM: "LCM",
    Sampler.TCD: "TCD",
}
SCHEDULE_NAMES = {
    Schedule.LINEAR: "Uniform",
    Schedule.LEADING: "DDIM",
    Schedule.TRAILING: "SGM Uniform",
    Schedule.KARRAS: "Karras",
    Schedule.EXPONENTIAL: "Exponential",
    Schedule.FLOW: "Simple",
}
# Theirs without one of ours: the model's own, and stable-diffusion.cpp's word for A1111's Uniform.
SCHEDULE_WORDS = {"Automatic": None, "discrete": "Uniform"}


def split_sampler(sampler: str | None, schedule: str | None) -> tuple[str | None, str | None]:
    """Sampler and schedule; older writers put both in one field: "DPM++ 2M Karras"."""
    if sampler and not schedule:
        for name in (*SCHEDULE_NAMES.values(), "Automatic", "discrete"):
            if sampler.lower().endswith(f" {name.lower()}"):
                sampler, schedule = sampler[: -len(name) - 1], name
                break
    return sampler, SCHEDULE_WORDS.get(schedule or "", schedule)
