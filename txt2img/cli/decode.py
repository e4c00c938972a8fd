"""txt2img decode: make the pictures of latents that were kept when a run ended before it could."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img import exif, formats, launch, output
from txt2img.cli import launched, options
from txt2img.cli.commands import Command
from txt2img.cli.extras import OtherFiles
from txt2img.cli.loading import load_model
from txt2img.cli.precision import Precision
from txt2img.cli.recorded import check_model
from txt2img.cli.results import say_file_error
from txt2img.cli.show import progress, say_path, say_record
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.escape import shown
from txt2img.formats import PNG

if TYPE_CHECKING:
    from txt2img.latents import Latent
    from txt2img.weights.load import Model

EPILOG = """
\b
Examples:
  txt2img decode .txt2img-*.latent
  txt2img decode x-1.latent --model models/sd15.safetensors -o again.png
"""
Files = Annotated[list[str], typer.Argument(metavar="FILE", help="Latents that a run has kept.")]


def decode(
    files: Files,
    model: options.Model = None,
    vae: options.VAE = None,
    device: options.DeviceName = None,
    dtype: options.Dtype = None,
    out: options.OutputName = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make the pictures of kept latents. Prints the path of each; a hidden latent then goes."""
    code = 0
    loaded: dict[str, Model] = {}
    with progress(not quiet, "loading") as bar:
        for i, name in launch.found().mine(enumerate(files)):
            bar.advance("decoding", i, len(files), f"{i + 1}/{len(files)}")
            try:
                latent = opened(Path(name), model, vae)
                wanted = model or latent.request.model
                if wanted not in loaded:
                    precision = Precision(device, dtype)
                    loaded[wanted] = load_model(wanted, precision, OtherFiles(vae=vae).library())
                path = made(
                    Path(name), latent, loaded[wanted], target(name, out, overwrite, files), i + 1
                )
            except Txt2imgError as error:
                with bar.aside():
                    say_file_error(name, error, json)
                code = code or error.exit_code
                continue
            with bar.aside():
                if json:
                    say_record({"file": name, "path": str(path), "step": latent.step})
                else:
                    say_path(path)
    if code := launched.together(code, None)[0]:
        raise typer.Exit(code)


def opened(path: Path, model: str | None, vae: str | None) -> "Latent":
    """A kept latent, if it is said what decodes it. BadFile, BadRequest."""
    from txt2img.latents import read

    latent = read(path)
    check_model(path, latent.request, model)
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
    from txt2img import pipeline, png
    from txt2img.batch import origin
    from txt2img.weights.load import device_of

    request = latent.request
    if tuple(latent.x.shape) != pipeline.latent_shape(model, request):
        raise BadFile(f"{shown(str(path))} is of another shape than this model's latents")
    name = latent.name if not to.pattern else to.name(request, index)
    form = formats.of(name) or PNG
    exif.check(form)
    [picture] = pipeline.decode(model, latent.x[None].to(device_of(model)))
    if latent.whole:
        by = latent.origin if latent.origin.hash == model.hash else origin(model)
        data = png.encode(picture, request, by, latent.first_seed, form)
    else:
        # It says what it is, and not what its request makes: no batch must take it for that.
        step = f"step {latent.step} of {latent.steps}, seed {request.seed}: {request.prompt}"
        data = png.written(picture, {"Comment": step}, form)
    if not latent.whole and not to.pattern:
        name = f"{Path(name).stem}-step{latent.step}{Path(name).suffix}"
    with to:
        written = to.write_as(data, name)
    if path.name.startswith(".txt2img-"):
        path.unlink(missing_ok=True)
    return written


COMMAND: Command = decode, EPILOG
