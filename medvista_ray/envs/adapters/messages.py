"""Observations as chat messages in the OpenAI format, pictures as data URIs. Called by the adapters."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.types import MedImage, Observation


def picture(image: MedImage, side: int) -> Image.Image:
    """The picture as a policy sees it, [side, side] RGB."""
    return Image.fromarray(policy_picture(image, side))


def data_uri(image: MedImage, side: int) -> str:
    """The picture as a PNG in a data: URI."""
    buffer = io.BytesIO()
    picture(image, side).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def user_message(observation: Observation, side: int) -> dict[str, Any]:
    """What the policy is shown next: plain text, or pictures followed by the text."""
    if not observation.images:
        return {"role": "user", "content": observation.text}
    pictures = [{"type": "image_url", "image_url": {"url": data_uri(image, side)}} for image in observation.images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": observation.text}]}
