"""Requests: what to draw, from options, prompt files, sweeps and wildcards. No torch."""

from txt2img.request.request import Defaults, Request
from txt2img.request.sampler_names import Compat, Sampler, Schedule

__all__ = ["Compat", "Defaults", "Request", "Sampler", "Schedule"]
