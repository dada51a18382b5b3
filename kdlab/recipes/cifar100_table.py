"""What is published of the CIFAR-100 comparison, and of which epoch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A top-1 test accuracy in percent, whose README reports it, and of which epoch: "last", "best" or "not stated"."""

    accuracy: float
    source: str
    epoch: str


@dataclass(frozen=True)
class Pair:
    """Two networks of :func:`kdlab.models.cifar_network`, DKD's published beta for them, and the published rows."""

    teacher: str
    student: str
    beta: float
    published: dict[str, Published]


def _rows(source: str, epoch: str, **accuracies: float) -> dict[str, Published]:
    return {name: Published(accuracy, source, epoch) for name, accuracy in accuracies.items()}


REPDISTILLER, MDISTILLER, DIST = ("RepDistiller", "last"), ("mdistiller", "best"), ("DIST", "not stated")
# Its file averages the squared factor over the channels first, which is attention transfer on factors. The loss here is
# the paper's, on the factors themselves.
ITS_OWN_FT = ("RepDistiller, perhaps of another loss: attention on the factors", "last")
LABELS_ALONE = ("RepDistiller", "not stated")  # the teacher, and the student without it
PAIRS = {
    f"{pair.teacher}-{pair.student}": pair
    for pair in (
        Pair(
            "resnet32x4", "resnet8x4", 8.0,
            _rows(*LABELS_ALONE, teacher=79.42, alone=72.50) | _rows(*MDISTILLER, dkd=76.32) | _rows(*DIST, dist=76.31)
            | _rows(*REPDISTILLER, kd=73.33, fitnet=73.50, at=73.44, sp=72.94, vid=73.09, rkd=71.90, pkt=73.64)
            | _rows(*REPDISTILLER, ab=73.17, fsp=72.62, crd=75.51) | _rows(*ITS_OWN_FT, ft=72.86),
        ),
        Pair(
            "wrn-40-2", "wrn-16-2", 6.0,
            _rows(*LABELS_ALONE, teacher=75.61, alone=73.26) | _rows(*MDISTILLER, dkd=76.23)
            | _rows(*REPDISTILLER, kd=74.92, fitnet=73.58, at=74.08, sp=73.83, vid=74.11, rkd=73.35, pkt=74.54)
            | _rows(*REPDISTILLER, ab=72.50, fsp=72.91, crd=75.48) | _rows(*ITS_OWN_FT, ft=73.25),
        ),
        Pair(
            "resnet56", "resnet20", 2.0,
            _rows(*LABELS_ALONE, teacher=72.34, alone=69.06) | _rows(*MDISTILLER, dkd=71.97) | _rows(*DIST, dist=71.75)
            | _rows(*REPDISTILLER, kd=70.66, fitnet=69.21, at=70.55, sp=69.67, vid=70.38, rkd=69.61, pkt=70.34)
            | _rows(*REPDISTILLER, ab=69.47, fsp=69.95, crd=71.16) | _rows(*ITS_OWN_FT, ft=69.84),
        ),
        Pair(
            "vgg13", "vgg8", 6.0,
            _rows(*LABELS_ALONE, teacher=74.64, alone=70.36) | _rows(*MDISTILLER, dkd=74.68)
            | _rows(*REPDISTILLER, kd=72.98, fitnet=71.02, at=71.43, sp=72.68, vid=71.23, rkd=71.48, pkt=72.88)
            | _rows(*REPDISTILLER, ab=70.94, fsp=70.23, crd=73.94) | _rows(*ITS_OWN_FT, ft=70.58),
        ),
    )
}  # fmt: skip
