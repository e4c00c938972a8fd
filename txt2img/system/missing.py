"""Libraries that cannot be imported: why, and the command that installs them."""

import shlex
import sys
from importlib.util import find_spec

from txt2img.system import resources

# The package of each module that this one needs.
PACKAGES = {
    **{name: name for name in ("torch", "numpy", "safetensors", "tokenizers", "accelerate")},
    **{name: name for name in ("huggingface_hub", "transformers", "typer", "rich", "torchao")},
    "httpx": "httpx",
    "PIL": "pillow",
    "resvg_py": "resvg_py",
}


def explain(error: ImportError) -> tuple[str, int]:
    """The line and exit code for a library that is missing, broken, or too large to load."""
    first = error
    while isinstance(first.__cause__, ImportError):  # numpy wraps it in a page of advice
        first = first.__cause__
    text = (str(first).strip().splitlines() or [type(first).__name__])[0]
    name = (error.name or "").partition(".")[0]
    is_missing = isinstance(error, ModuleNotFoundError)
    if not is_missing and resources.available() < resources.LIBRARIES:
        return f"this machine has too little memory to load the libraries: {text}", 5
    package = PACKAGES.get(name)
    if package is None:
        return f"a part of this installation cannot be loaded: {text}; install txt2img again", 1
    state = "is missing" if is_missing else f"is broken or too old ({text})"
    return f"the package {package} {state}; install it: {install_command(package)}", 1


def install_command(package: str) -> str:
    """The command line that installs a package into this environment."""
    pip = [sys.executable, "-m", "pip", "install"]
    if find_spec("pip") is None:  # as in environments of uv and pipx
        pip = ["uv", "pip", "install", "--python", sys.executable]
    return shlex.join([*pip, "--upgrade", package])
