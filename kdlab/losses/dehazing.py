"""The losses of the dehazing networks: details of every size, colours as the eye sees them, and the teacher's map."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.inputs import comparable

Images = Float[Tensor, "n 3 h w"]
_BELL = [math.exp(-(step**2) / 2) for step in range(-2, 3)]
BLUR = [height / sum(_BELL) for height in _BELL]  # a row of the Gaussian of 5x5 and sigma 1


class KTLoss(nn.Module):
    r"""Compare one map of the student, of the hazy image, with the teacher's, of the clean one: knowledge transfer.

    .. math:: \mathcal L = \frac{1}{NCHW} \left\| F^s - F^t \right\|_1

    Shapes: student and teacher (n, c, h, w) of one size. Returns a scalar in the units of the maps, the mean over all
    elements. The teacher is detached. Half precision is compared in float32.

    Raises:
        InputError: shapes that differ; no floating point numbers; two devices.

    Source: Wu et al.: Knowledge Transfer Dehazing Network for NonHomogeneous Dehazing, CVPR Workshops 2020. The weight
    of SRKTDN's released code is 1.
    """

    def forward(self, student: Float[Tensor, "n c h w"], teacher: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
        return F.l1_loss(*comparable(student, teacher, "n c h w"))


class LaplacianLoss(nn.Module):
    r"""Compare two images in the details of each size: the levels of their Laplacian pyramids.

    .. math:: \mathcal L = \sum_{j=0}^{J-1} 4^{-j} \frac{1}{|L_j|} \left\| L_j(x) - L_j(y) \right\|_1, \qquad
              L_j = I_j - G * I_j, \quad I_{j+1} = \operatorname{pool}_2(G * I_j)

    with G the Gaussian of 5x5 and sigma 1, on images continued by their border pixels. What is left after the last
    level, the coarse brightness, is not compared: add another loss for it. A pyramid is linear, so that of the
    difference is taken.

    Args:
        levels: J, at least 1; the released code has 5.

    Shapes: ``student`` and ``teacher`` images (n, 3, h, w) with sides of at least 2^(J-1), 16 for five levels. Returns
    a scalar in the units of the images. The teacher's side is detached. Half precision is compared in float32.

    Raises:
        InputError: no levels; images too small for them; shapes that differ; no floating point numbers; two devices.

    Source: Bojanowski, Joulin, Lopez-Paz, Szlam: Optimizing the Latent Space of Generative Networks, ICML 2018,
    arXiv:1707.05776, whose weights grow with the level; the weights here are those of SRKTDN's released code, with 0.3
    for the whole.
    """

    def __init__(self, levels: int = 5) -> None:
        super().__init__()
        if levels < 1:
            raise InputError(f"levels is {levels}; wanted: at least 1, such as 5.")
        self.levels = levels

    def forward(self, student: Images, teacher: Images) -> Float[Tensor, ""]:
        mine, its = comparable(student, teacher, "n c h w")
        least = 2 ** (self.levels - 1)
        if min(mine.shape[2:]) < least:
            height, width = mine.shape[2:]
            raise InputError(f"images are {height} high and {width} wide; {self.levels} levels want {least}x{least}.")
        with torch.autocast(mine.device.type, enabled=False):
            left = (mine - its).flatten(0, 1)[:, None]  # each channel by itself
            total = left.new_zeros(())
            for level in range(self.levels):
                blurred = self._blurred(left)
                total = total + F.l1_loss(left, blurred) / 4**level
                if level < self.levels - 1:
                    left = F.avg_pool2d(blurred, 2)
        return total

    def _blurred(self, images: Tensor) -> Tensor:
        row = images.new_tensor(BLUR).view(1, 1, 1, -1)
        return F.conv2d(F.conv2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), row), row.transpose(2, 3))

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class LabLoss(nn.Module):
    r"""Compare two images in CIE Lab, where equal distances look equally far to the eye.

    .. math:: \mathcal L = \frac{1}{3NHW} \sum \left( \operatorname{Lab}(x) - \operatorname{Lab}(y) \right)^2

    with L / 100, (a + 128) / 255 and (b + 128) / 255, each about 0 to 1, as :func:`srgb_to_lab` gives them before.

    Shapes: ``student`` and ``teacher`` images (n, 3, h, w), sRGB in 0 to 1; values outside are no error. Returns a
    scalar without unit. The teacher's side is detached. Half precision is compared in float32.

    Raises:
        InputError: shapes that differ; other than three channels; no floating point numbers; two devices.

    Source: SRKTDN's released code, with a weight of 0.5.
    """

    def forward(self, student: Images, teacher: Images) -> Float[Tensor, ""]:
        mine, its = comparable(student, teacher, "n c h w")
        with torch.autocast(mine.device.type, enabled=False):
            lack = srgb_to_lab(mine) - srgb_to_lab(its)  # the shifts by 128 go out
        return (lack / lack.new_tensor([100.0, 255.0, 255.0]).view(3, 1, 1)).square().mean()


# Of linear red, green and blue in D65's X, Y and Z, seen at 2 degrees, over those of white.
TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
LINEAR_UP_TO = 0.04045  # of sRGB
CUBIC_FROM = 0.008856  # of Lab


def srgb_to_lab(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """CIE Lab of sRGB images in 0 to 1: L 0 to 100, a and b about -128 to 127, for the white D65 seen at 2 degrees.

    Below 0, where no image is, the straight pieces next to black go on, so that there is a gradient everywhere.

    Raises:
        InputError: other than three channels.

    Source: IEC 61966-2-1 (sRGB) and CIE 15 (Lab), with scikit-image's constants.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images are {tuple(images.shape)}; wanted: (n, 3, h, w), red, green and blue.")
    # Each power on what is above its threshold alone: the gradient of the piece that is not taken must be finite, too.
    curved = ((images.clamp(min=LINEAR_UP_TO) + 0.055) / 1.055) ** 2.4
    linear = torch.where(images > LINEAR_UP_TO, curved, images / 12.92)
    xyz = torch.einsum("dc,nchw->ndhw", linear.new_tensor(TO_XYZ), linear)
    root = xyz.clamp(min=CUBIC_FROM) ** (1 / 3)
    x, y, z = torch.where(xyz > CUBIC_FROM, root, 7.787 * xyz + 16 / 116).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
