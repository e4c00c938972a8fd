"""ComfyUI's nodes of samplers, schedules and guidance, in a request's words."""

from collections.abc import Callable, Mapping

Value = Callable[[str], object]  # the value of a node's input, by its name

# Parts of SamplerCustom and SamplerCustomAdvanced; their steps, eta and denoise are read by name.
SAMPLER_NODES = {
    "SamplerEulerAncestral": "euler_a",
    "SamplerEulerCFGpp": "euler_cfg++",
    "SamplerEulerAncestralCFGPP": "euler_a_cfg++",
    "SamplerLMS": "lms",
    "SamplerDPMPP_2S_Ancestral": "dpm++2s_a",
    "SamplerDPMPP_SDE": "dpm++sde",
    "SamplerDPMPP_2M_SDE": "dpm++2m_sde",
    "SamplerDPMPP_3M_SDE": "dpm++3m_sde",
    "SamplerDPMAdaptative": "dpm_adaptive",
    "SamplerER_SDE": "er_sde",
}
SCHEDULE_NODES = {
    "KarrasScheduler": "karras",
    "ExponentialScheduler": "exponential",
    "PolyexponentialScheduler": "polyexponential",
    "BetaSamplingScheduler": "beta",
    "AlignYourStepsScheduler": "align_your_steps",
}
WITHOUT_ETA = ("SamplerLMS", "SamplerER_SDE", "SamplerEulerCFGpp")
# Settings without a field, and the values that need none.
USUAL: Mapping[str, tuple[object, ...]] = {
    "rho": (7, 7.0, 1, 1.0),
    "alpha": (0.6,),
    "beta": (0.6,),
    "s_noise": (1, 1.0),
    "r": (0.5,),
    "order": (3,),
}


def sampling_values(kind: object, value: Value) -> dict[str, object]:
    """A request's sampler, schedule and eta, as a node of either says."""
    values: dict[str, object] = {}
    if isinstance(kind, str) and kind in SAMPLER_NODES:
        values["sampler"] = SAMPLER_NODES[kind]
        if kind == "SamplerDPMPP_2M_SDE" and value("solver_type") == "heun":
            values["sampler"] = "dpm++2m_sde_heun"
        if kind not in WITHOUT_ETA:
            values["eta"] = value("eta")
    if isinstance(kind, str) and kind in SCHEDULE_NODES:
        values["schedule"] = SCHEDULE_NODES[kind]
    return {name: one for name, one in values.items() if one is not None}


def sampling_notes(kind: object, value: Value) -> list[str]:
    """A note for each setting of such a node that has no field."""
    if kind not in SAMPLER_NODES and kind not in SCHEDULE_NODES:
        return []
    given = {name: value(name) for name in USUAL}
    return [
        f"{name} {given[name]} of the node {kind} is not carried over"
        for name, usual in USUAL.items()
        if isinstance(given[name], int | float) and given[name] not in usual
    ]


def _list(*names: str) -> Callable[[Value], str]:
    return lambda value: ",".join(str(value(name)) for name in names)


FREEU = ("b1", "b2", "s1", "s2")
APG = ("eta", "norm_threshold", "momentum")
THRESHOLDING = ("mimic_scale", "threshold_percentile")
# Nodes between a model and its sampler: a request's field, and its text of a node's inputs.
MODEL_NODES: Mapping[str, tuple[str, Callable[[Value], object]]] = {
    "PerturbedAttentionGuidance": ("pag", lambda value: value("scale")),
    "RescaleCFG": ("cfg_rescale", lambda value: value("multiplier")),
    "APG": ("apg", _list(*APG)),
    "FreeU": ("freeu", lambda value: _list(*FREEU)(value) + ",1"),
    "FreeU_V2": ("freeu", _list(*FREEU)),
    "DynamicThresholdingSimple": ("dynamic_thresholding", _list(*THRESHOLDING)),
}
# Their widgets on the screen, in order.
WIDGETS = {
    "PerturbedAttentionGuidance": ("scale",),
    "RescaleCFG": ("multiplier",),
    "APG": APG,
    "FreeU": FREEU,
    "FreeU_V2": FREEU,
    "DynamicThresholdingSimple": THRESHOLDING,
    "SamplerEulerAncestral": ("eta", "s_noise"),
    "SamplerEulerAncestralCFGPP": ("eta", "s_noise"),
    "SamplerDPMPP_2M_SDE": ("solver_type", "eta", "s_noise", ""),
    "SamplerDPMPP_3M_SDE": ("eta", "s_noise", ""),
    "SamplerDPMPP_SDE": ("eta", "s_noise", "r", ""),
    "KarrasScheduler": ("steps", "", "", "rho"),
    "ExponentialScheduler": ("steps", "", ""),
    "PolyexponentialScheduler": ("steps", "", "", "rho"),
    "BetaSamplingScheduler": ("steps", "alpha", "beta"),
    "AlignYourStepsScheduler": ("", "steps", "denoise"),
}
