"""What a widget shows."""

import base64
import io
import re

import numpy as np
from PIL import Image


def pictures(html: str) -> list[np.ndarray]:
    """The pixels of its PNGs."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.array(Image.open(io.BytesIO(base64.b64decode(png)))) for png in found]
