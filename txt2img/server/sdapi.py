"""A1111's API under /sdapi/v1: drawing, progress and interrupt, options, and lists of names.

Source: modules/api/api.py and modules/api/models.py.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from io import BytesIO

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from txt2img.errors import BadFile, BadRequest
from txt2img.images.image_file import read_stream
from txt2img.images.metadata import a1111
from txt2img.request.a1111_api import picture
from txt2img.request.sampler_names import Sampler, Schedule
from txt2img.request.upscalers import SCALE_MAX, Interpolation, parse_upscaler
from txt2img.server.answers import base64_of
from txt2img.server.bodies import json_object
from txt2img.server.drawing import png_of
from txt2img.server.jobs import Job
from txt2img.server.service import Service, check_picture, owner_of, service_of
from txt2img.system.text import shown
from txt2img.system.version import __version__

Values = dict[str, object]
API = "sdapi"
NOT_ECHOED = ("init_images", "mask")
# Lists and objects that are empty here, as clients expect to find them.
EMPTY: Mapping[str, object] = {
    **dict.fromkeys(("hypernetworks", "face-restorers", "realesrgan-models", "sd-vae"), ()),
    **dict.fromkeys(("prompt-styles", "script-info"), ()),
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {},
    "memory": {"ram": {}, "cuda": {}},
}


async def txt2img(request: Request) -> Response:
    """POST /sdapi/v1/txt2img."""
    return await draw(request, from_picture=False)


async def img2img(request: Request) -> Response:
    """POST /sdapi/v1/img2img."""
    return await draw(request, from_picture=True)


async def draw(request: Request, from_picture: bool) -> Response:
    """Draw as a call says. Raises as `Service.draw`."""
    service, owner = service_of(request), owner_of(request)
    async with service.bodies.body(request) as body:
        values = await asyncio.to_thread(json_object, body)
        given = {name: value for name, value in values.items() if name not in NOT_ECHOED}
        fields = cleaned(values, from_picture)
        name = service.model(checkpoint(fields), owner)
        job = await asyncio.to_thread(service.job, fields, name, {}, api=API, owner=owner)
        await service.draw(request.receive, job)
    images = [base64_of(one.data) for one in job.pictures]
    if job.unfinished is not None:
        images.append(base64_of(png_of(job.unfinished)))
    sent = images if given.get("send_images", True) else []
    return JSONResponse({"images": sent, "parameters": given, "info": json.dumps(info(job, given))})


def cleaned(values: Values, from_picture: bool) -> Values:
    """A call's values without those that A1111 ignores too. HTTPException."""
    fields = {"prompt": "", **values}
    if from_picture:
        if not fields.get("init_images"):
            raise HTTPException(404, "Init image not found")
        if not fields.get("mask"):
            for name in ("inpaint_full_res", "inpaint_full_res_padding", "inpainting_fill"):
                fields.pop(name, None)
            for name in ("mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_mask_invert"):
                fields.pop(name, None)
    elif not fields.get("enable_hr"):
        fields.pop("denoising_strength", None)
    return fields


def checkpoint(fields: Values) -> object:
    """The model that a call's settings ask for; taken out of them."""
    settings = fields.get("override_settings")
    if not isinstance(settings, dict):
        return None
    rest = {name: value for name, value in settings.items() if name != "sd_vae"}
    fields["override_settings"] = rest
    return rest.pop("sd_model_checkpoint", None)


def info(job: Job, given: Mapping[str, object]) -> Values:
    """What A1111 says of a call's pictures, as a JSON object."""
    requests = [one.request for one in job.pictures] or [job.request]
    first, origin = requests[0], job.pictures[0].origin if job.pictures else None
    name, digits = (origin.model, origin.hash) if origin else (job.model, "")
    texts = [str(a1111.describe(one, name, digits, __version__)) for one in requests]
    prompts, negatives = [one.prompt for one in requests], [one.negative for one in requests]
    subseeds = [-1 if one.subseed is None else one.subseed for one in requests]
    return {
        "prompt": first.prompt,
        "all_prompts": prompts,
        "negative_prompt": first.negative,
        "all_negative_prompts": negatives,
        "seed": first.seed,
        "all_seeds": [one.seed for one in requests],
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": first.subseed_strength,
        "width": first.width,
        "height": first.height,
        "steps": first.steps,
        "sampler_name": first.sampler.label if first.sampler else "",
        "cfg_scale": first.cfg,
        "batch_size": given.get("batch_size") or 1,
        "restore_faces": False,
        "sd_model_name": name,
        "sd_model_hash": digits,
        "clip_skip": first.clip_skip or 1,
        "denoising_strength": first.strength,
        "extra_generation_params": {},
        "styles": [],
        "index_of_first_image": 0,
        "infotexts": texts,
        "interrupted": job.stop.is_set(),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "version": f"txt2img {__version__}",
    }


async def progress(request: Request) -> Response:
    """GET /sdapi/v1/progress: of the client's job that is being drawn."""
    service = service_of(request)
    mine = jobs_of(service, owner_of(request))
    job = next((one for one in mine if one.began is not None), None)
    skip = request.query_params.get("skip_current_image", "").lower() in ("1", "true")
    image, eta, done = None, 0.0, 0.0
    if job is not None and job.began is not None:
        done = job.progress
        eta = (time.monotonic() - job.began) * (1 / done - 1) if done else 0.0
        if not skip:
            job.preview_wanted = True
            preview = job.preview
            if preview is not None:
                image = base64_of(await asyncio.to_thread(png_of, preview))
    state = {
        "skipped": False,
        "interrupted": bool(job and job.stop.is_set()),
        "stopping_generation": False,
        "job": "txt2img" if job else "",
        "job_count": len(mine),
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": job.step if job else 0,
        "sampling_steps": job.steps if job else 0,
    }
    current = {"current_image": image, "textinfo": None, "current_task": None}
    return JSONResponse({"progress": done, "eta_relative": eta, "state": state, **current})


def jobs_of(service: Service, owner: str) -> list[Job]:
    """The jobs of A1111's API, by clients with the same key."""
    return [job for job in service.queue.jobs if job.api == API and job.owner == owner]


async def interrupt(request: Request) -> Response:
    """POST /sdapi/v1/interrupt and skip: stop the client's own job after its current step."""
    service, owner = service_of(request), owner_of(request)
    service.queue.interrupt(lambda job: job.api == API and job.owner == owner)
    return JSONResponse({})


async def options(request: Request) -> Response:
    """GET and POST /sdapi/v1/options: the client's model; other settings come with each call."""
    service, owner = service_of(request), owner_of(request)
    if request.method == "POST":
        async with service.bodies.body(request) as body:
            values = json_object(body)
        if (name := values.get("sd_model_checkpoint")) is not None:
            service.chosen[owner] = service.model(name, owner)
        return JSONResponse(None)
    name = service.model(None, owner)
    chosen = {"sd_model_checkpoint": name, "sd_checkpoint_hash": "", "sd_vae": "Automatic"}
    clip_skip = service.base.clip_skip or 1
    return JSONResponse({**chosen, "CLIP_stop_at_last_layers": clip_skip, "samples_format": "png"})


async def sd_models(request: Request) -> Response:
    """GET /sdapi/v1/sd-models."""
    rows = [
        {"title": name, "model_name": name, "hash": None, "sha256": None}
        | {"filename": name, "config": None}
        for name in service_of(request).catalog.models
    ]
    return JSONResponse(rows)


async def samplers(request: Request) -> Response:
    """GET /sdapi/v1/samplers."""
    names = [{"name": one.label, "aliases": [one.value, *one.aliases]} for one in Sampler]
    return JSONResponse([{**row, "options": {}} for row in names])


async def schedulers(request: Request) -> Response:
    """GET /sdapi/v1/schedulers."""
    rest = {"default_rho": -1.0, "need_inner_model": False}
    names = [(one.value, one.label, [*one.aliases]) for one in Schedule]
    rows = [("automatic", "Automatic", None), *names]
    return JSONResponse([{"name": n, "label": to, "aliases": al, **rest} for n, to, al in rows])


async def loras(request: Request) -> Response:
    """GET /sdapi/v1/loras."""
    names = sorted(service_of(request).catalog.library.loras)
    return JSONResponse([{"name": n, "alias": n, "path": n, "metadata": {}} for n in names])


async def embeddings(request: Request) -> Response:
    """GET /sdapi/v1/embeddings."""
    words = sorted(service_of(request).catalog.library.embeddings)
    return JSONResponse({"loaded": {word: {} for word in words}, "skipped": {}})


async def upscalers(request: Request) -> Response:
    """GET /sdapi/v1/upscalers."""
    interpolations = [one.label for one in Interpolation if not one.of_latents]
    names = ["None", *interpolations, *sorted(service_of(request).catalog.library.upscalers)]
    rest = {"model_path": None, "model_url": None, "scale": 4.0}
    return JSONResponse([{"name": name, "model_name": name, **rest} for name in names])


async def latent_upscale_modes(request: Request) -> Response:
    """GET /sdapi/v1/latent-upscale-modes."""
    return JSONResponse([{"name": one.label} for one in Interpolation if one.of_latents])


async def refresh(request: Request) -> Response:
    """POST /sdapi/v1/refresh-checkpoints and refresh-loras."""
    await service_of(request).refresh()
    return JSONResponse(None)


async def empty(request: Request) -> Response:
    """GET of what is empty here."""
    return JSONResponse(EMPTY[request.url.path.rpartition("/")[2]])


async def png_info(request: Request) -> Response:
    """POST /sdapi/v1/png-info: the texts in a picture, of any program."""
    async with service_of(request).bodies.body(request) as body:
        values = await asyncio.to_thread(json_object, body)
        content = sent_picture(values)
        try:
            read = await asyncio.to_thread(read_stream, BytesIO(content), "the picture")
        except BadFile as error:
            raise BadRequest(str(error)) from None
    text = read.texts.get("parameters", "")
    if not text and read.request:
        text = str(a1111.describe(read.request, read.origin.model, read.origin.hash, __version__))
    entries = dict(a1111.parse(text).entries) if text else {}
    return JSONResponse({"info": text, "items": read.texts, "parameters": entries})


def sent_picture(values: Mapping[str, object]) -> bytes:
    """The picture in a call's values. BadRequest."""
    contents: dict[str, bytes] = {}
    text = values.get("image")
    if not isinstance(text, str) or picture(text, contents).name not in contents:
        raise BadRequest(f"image must be a picture as base64, got {shown(text)}")
    [content] = contents.values()
    check_picture("image", content)
    return content


async def extra_single_image(request: Request) -> Response:
    """POST /sdapi/v1/extra-single-image: upscale a picture."""
    service, owner = service_of(request), owner_of(request)
    async with service.bodies.body(request) as body:
        values = await asyncio.to_thread(json_object, body)
        content = sent_picture(values)
        name, scale = values.get("upscaler_1") or "None", values.get("upscaling_resize", 2)
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise BadRequest(f"upscaling_resize is a number, got {shown(scale)}")
        if values.get("resize_mode", 0) != 0 or not 1 <= scale <= SCALE_MAX:
            raise BadRequest(f"resize_mode is 0, with upscaling_resize of 1 … {SCALE_MAX:g}")
        if name == "None":
            return JSONResponse({"html_info": "", "image": base64_of(content)})
        upscaler = parse_upscaler(str(name)).name
        fields: Values = {"prompt": "", "image": base64_of(content), "upscale": upscaler}
        fields["upscale_by"] = float(scale)
        model = service.model(None, owner)
        job = await asyncio.to_thread(service.job, fields, model, {}, api=API, owner=owner)
        job.enlarges = True
        await service.draw(request.receive, job)
    return JSONResponse({"html_info": "", "image": base64_of(job.pictures[0].data)})


POST = ["POST"]
ROUTES = [
    Route("/sdapi/v1/txt2img", txt2img, methods=POST),
    Route("/sdapi/v1/img2img", img2img, methods=POST),
    Route("/sdapi/v1/extra-single-image", extra_single_image, methods=POST),
    Route("/sdapi/v1/png-info", png_info, methods=POST),
    Route("/sdapi/v1/progress", progress),
    Route("/sdapi/v1/options", options, methods=["GET", "POST"]),
    Route("/sdapi/v1/sd-models", sd_models),
    Route("/sdapi/v1/samplers", samplers),
    Route("/sdapi/v1/schedulers", schedulers),
    Route("/sdapi/v1/loras", loras),
    Route("/sdapi/v1/embeddings", embeddings),
    Route("/sdapi/v1/upscalers", upscalers),
    Route("/sdapi/v1/latent-upscale-modes", latent_upscale_modes),
    *(Route(f"/sdapi/v1/{name}", interrupt, methods=POST) for name in ("interrupt", "skip")),
    *(
        Route(f"/sdapi/v1/{name}", refresh, methods=POST)
        for name in ("refresh-checkpoints", "refresh-loras")
    ),
    *(Route(f"/sdapi/v1/{name}", empty) for name in EMPTY),
]
