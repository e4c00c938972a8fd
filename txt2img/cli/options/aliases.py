"""Other names of options, which work and are not shown: former ones, and other programs'.

Those of options that are fields of a request stand in request/fields.py.
"""

OTHER_NAMES = {  # without hyphens
    # former names
    "from": "params-from",
    "keep-latents": "save-latents",
    "no-warm": "no-keep-alive",
    "show": "preview",
    "warm": "keep-alive",
    "what": "stage",
    "zip": "sweep-zip",
    # A1111, stable-diffusion.cpp, diffusers' scripts, the first Stable Diffusion's txt2img.py
    "checkpoint": "model",
    "ckpt": "model",
    "embd-dir": "embedding-dir",
    "embeddings-dir": "embedding-dir",
    "from-file": "prompts",
    "lora-model-dir": "lora-dir",
    "out": "output",
    "pretrained-model-name-or-path": "model",
    "preview-interval": "preview-every",
    "preview-path": "preview-file",
    "vae-path": "vae",
}


def spellings(option: str) -> tuple[str, ...]:
    """All flags that mean an option, which is given without hyphens."""
    names = (option, *(other for other, name in OTHER_NAMES.items() if name == option))
    return tuple(f"--{s}" for name in names for s in dict.fromkeys((name, name.replace("-", "_"))))
