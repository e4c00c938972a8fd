"""txt2img decode: make the pictures of latents that were kept when a run ended before it could."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli import distributed
from txt2img.cli.load_model import load_model
from txt2img.cli.names import Command
from txt2img.cli.options import types
from txt2img.cli.options.adapters import AdapterFileOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.provenance import require_model
from txt2img.cli.terminal.console import print_json, print_path, progress
from txt2img.cli.terminal.results import print_file_error
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import formats, output
from txt2img.images.formats import PNG
from txt2img.system import launcher
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.pipeline.latent_store import Latent
    from txt2img.weights.model import Model

EPILOG = """
\b
Examples:
  txt2img decode .txt2img-*.latent
  txt2img decode x-1.latent --model models/sd15.safetensors -o again.png
"""
Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Latents that a run has kept.")]


def decode(
    files: Files,
    model: types.Model = None,
    vae: types.VAE = None,
    device: types.DeviceName = None,
    dtype: types.Dtype = None,
    out: types.OutputName = None,
    overwrite: types.Overwrite = False,
    json: types.Json = False,
    quiet: types.Quiet = False,
) -> None:
    """Make the pictures of kept latents. Prints the path of each; a hidden latent then goes."""
    code = 0
    loaded: dict[str, Model] = {}
    with progress(not quiet, "loading") as bar:
        for i, name in launcher.found().shard(enumerate(files)):
            bar.advance("decoding", i, len(files), f"{i + 1}/{len(files)}")
            try:
                latent = opened(Path(name), model, vae)
                wanted = model or latent.request.model
                if wanted not in loaded:
                    precision = DeviceOptions(device, dtype)
                    loaded[wanted] = load_model(
                        wanted, precision, AdapterFileOptions(vae=vae).library()
                    )
                path = made(
                    Path(name), latent, loaded[wanted], target(name, out, overwrite, files), i + 1
                )
            except Txt2imgError as error:
                with bar.paused():
                    print_file_error(name, error, json)
                code = code or error.exit_code
                continue
            with bar.paused():
                if json:
                    print_json({"file": name, "path": str(path), "step": latent.step})
                else:
                    print_path(path)
    if code := distributed.together(code, None)[0]:
        raise typer.Exit(code)


def opened(path: Path, model: str | None, vae: str | None) -> "Latent":
    """A kept latent, if it is said what decodes it. BadFile, BadRequest."""
    from txt2img.pipeline.latent_store import read

    latent = read(path)
    require_model(path, latent.request, model)
    if vae is None and (own := latent.request.vae) is not None:
        its = shown(own.name)
        raise BadRequest(f"{shown(str(path))} was drawn with the VAE {its}; give its --vae")
    return latent


def target(name: str, out: str | None, overwrite: bool, files: list[str]) -> output.Output:
    """Where a picture goes: beside its latent unless it is said. BadRequest."""
    if out is not None:
        return output.parse(out, len(files) > 1, overwrite)
    return output.Output(Path(name).parent, "", overwrite=overwrite)


def made(path: Path, latent: "Latent", model: "Model", to: output.Output, index: int) -> Path:
    """Write the picture of a latent, the `index`-th of all; gives its path. Txt2imgError."""
    from txt2img.images import image_file
    from txt2img.pipeline import generate
    from txt2img.pipeline.batch import origin
    from txt2img.weights.model import device_of

    request = latent.request
    if tuple(latent.x.shape) != generate.latent_shape(model, request):
        raise BadFile(f"{shown(str(path))} is of another shape than this model's latents")
    name = latent.name if not to.pattern else to.name(request, index)
    form = formats.by_suffix(name) or PNG
    formats.check_writable(form)
    [picture] = generate.decode(model, latent.x[None].to(device_of(model)))
    if latent.finished:
        by = latent.origin if latent.origin.hash == model.hash else origin(model)
        data = image_file.encode(picture, request, by, latent.first_seed, form)
    else:
        # It says what it is, and not what its request makes: no batch must take it for that.
        step = f"step {latent.step} of {latent.steps}, seed {request.seed}: {request.prompt}"
        data = image_file.encode_texts(picture, {"Comment": step}, form)
    if not latent.finished and not to.pattern:
        name = f"{Path(name).stem}-step{latent.step}{Path(name).suffix}"
    with to:
        written = to.write_as(data, name)
    if path.name.startswith(".txt2img-"):
        path.unlink(missing_ok=True)
    return written


COMMAND: Command = decode, EPILOG
