"""Pictures as prompts → an IP-Adapter's keys and values, computed once a picture."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN = 0.48145466, 0.4578275, 0.40821073  # of the pictures that CLIP was trained on, by channel
DEVIATION = 0.26862954, 0.26130258, 0.27577711


def pixels_for_clip(image: Image.Image, side: int) -> Tensor:
    """An RGB picture's middle square as CLIP sees it: (1, 3, side, side), normalised."""
    short = min(image.size)
    width, height = (side * length // short for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, up = (width - side) // 2, (height - side) // 2
    values = np.asarray(image.crop((left, up, left + side, up + side)), np.float32) / 255
    values = (values - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]
