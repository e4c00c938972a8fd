"""Preprocess pictures into control maps: by OpenCV, or by a model of depths, segments or poses."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from txt2img.images.pose import draw_people
from txt2img.images.preprocess import preprocess
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.system.device.device import Device
from txt2img.weights.annotator import Annotator, load_annotator
from txt2img.weights.model import Model, device_of

# ADE20K's colours of its 150 classes, RGB in hexadecimal digits, as its toolkits draw them.
ADE20K = bytes.fromhex(
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d787846"
    "08ff33ff06528fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdc"
    "ff095c7009ff08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14"
    "ff0829ff05990633ffeb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ff"
    "ff470000ebff00adff1f00ff0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00"
    "008fff33ff000052ff00ff2900ffad0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014"
    "ffb8b8001fff00ff3d0047ffff00cc00ffc200ff52000aff0070ff3300ff00c2ff007aff00ffa3ff9900"
    "00ff0aff70008fff005200ffa3ff00ffeb0008b8aa8500ff00ff5cb800ffff001f00b8ff00d6ffff0070"
    "5cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3ffcc00ff008f00ffeb85ff00ff00ebf500ff"
    "ff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff00ffcc2900ff29ff00ad00ff00f5ff"
    "4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff"
)


def preprocess_image(
    image: Image.Image, how: Preprocess, annotator: Annotator | None = None
) -> Image.Image:
    """The map of a picture, RGB and of its size, by OpenCV or by a loaded model. Txt2imgError."""
    image = image.convert("RGB")
    if annotator is None:
        return preprocess(image, how)
    found = annotator(image)
    if annotator.kind is Preprocessor.POSE:
        return draw_people(found.numpy(), image.size)
    if annotator.kind is Preprocessor.DEPTH:
        return depth_map(found, annotator.metric)
    palette = np.frombuffer(ADE20K, np.uint8).reshape(-1, 3)
    return Image.fromarray(palette[found.clamp(min=0).numpy()])


def preprocess_for(model: Model, image: Image.Image, how: Preprocess) -> Image.Image:
    """The map of a picture by a resolved request's preprocessor, whose model is loaded once.

    BadFile, BadRequest, MissingWeights, OutOfMemory; Txt2imgError without OpenCV.
    """
    if not how.model:
        return preprocess_image(image, how)
    loaded, key = model.adapters.annotators, str(how)
    if key not in loaded:
        device = Device(device_of(model), torch.float32)
        loaded[key] = load_annotator(how, model.adapters.paths.annotators, device)
    return preprocess_image(image, how, loaded[key])


def depth_map(depths: Tensor, metric: bool) -> Image.Image:
    """The map of depths (H, W): what is near is white, as MiDaS draws it.

    Depths in metres are inverted: ControlNets learned from inverse ones.
    """
    depths = depths.float()
    nearness = 1 / depths.clamp(min=1e-3) if metric else depths
    low, high = nearness.aminmax()
    levels = (nearness - low) / (high - low).clamp(min=1e-12) * 255
    return Image.fromarray(levels.to(torch.uint8).numpy()).convert("RGB")
