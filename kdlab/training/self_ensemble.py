"""Restoring an image in all eight positions at once."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

POSITIONS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))  # flips; each also transposed


class SelfEnsemble(nn.Module):
    """A restorer that takes the mean of what its model makes of an image mirrored, upside down and transposed.

    What the model thinks of left and right, or of up and down, goes out; it costs eight times the time and memory. A
    square image takes one batch of eight, another one two of four.

    Args:
        model: from images (n, 3, h, w) to the same, each by itself, hence in eval mode;
            :func:`kdlab.training.tiles.restore` and :func:`measure_each` call it so.

    Shapes: as the model's.

    Source: Timofte, Rothe, Van Gool: Seven Ways to Improve Example-Based Single Image Super Resolution, CVPR 2016,
    arXiv:1511.02228.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        flipped = torch.cat([images.flip(dims) for dims in POSITIONS])
        transposed = flipped.transpose(2, 3)
        if images.shape[2] == images.shape[3]:
            upright, lying = self.model(torch.cat([flipped, transposed])).chunk(2)
        else:
            upright, lying = self.model(flipped), self.model(transposed)
        parts = (upright + lying.transpose(2, 3)).chunk(len(POSITIONS))
        back = [part.flip(dims) for part, dims in zip(parts, POSITIONS, strict=True)]
        return torch.stack(back).mean(dim=0) / 2
