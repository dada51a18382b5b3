"""Measure the speed and memory of the losses, taps and distiller, each figure beside what it is compared with.

    python benchmarks/losses.py                         # everything
    python benchmarks/losses.py time stop               # some parts
    python benchmarks/losses.py --device cuda           # everything on a GPU, and each loss compiled
    python benchmarks/losses.py --write                 # everything, kept in benchmarks/RESULTS.md

A loss is compared with torchdistill's where that computes the same, else with its formula written down as it stands.
KDLoss is in benchmarks/response.py. Compared variants take turns; a table shows medians with their quartiles in
brackets; "ratio" is ours over the other's, so that smaller is better. Memory is the most that PyTorch's allocator had
handed out at one time during a call, forward and backward, above what it had before; scratch memory inside a library's
kernels is not in it. The comparison with torchdistill wants a package that kdlab does not need otherwise:

    pip install --no-deps torchdistill==1.1.5
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from timeit import timeit
from typing import Any

import torch
import torch.nn.functional as F
from timing import Parts, Row, Run, command_line, compare, interleave, memory_row, take_turns, time_chapters, yes
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader
from torchvision.models import resnet34

from kdlab.data import load_digits
from kdlab.distill import Distiller, Term
from kdlab.losses import (
    ABLoss,
    ATLoss,
    CRDLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    FSPLoss,
    FTLoss,
    HintLoss,
    KDLoss,
    LabelledCrossEntropy,
    MGDLoss,
    OFDLoss,
    PKTLoss,
    ReviewKDLoss,
    RKDLoss,
    SPLoss,
    VIDLoss,
)
from kdlab.models import StudentCNN, densenet121
from kdlab.recipes.settings import place

try:
    from torchdistill.losses import mid_level as peer  # type: ignore[import-not-found]

    NO_PEER = ""
except ImportError as error:
    NO_PEER = f"no peer ({error}); get it by `pip install --no-deps torchdistill==1.1.5`"

PATHS = (".", "output", ".", "output")  # where the peer looks for the student's side and the teacher's
PAIR = {side: {"path": ".", "io": "output"} for side in ("student", "teacher")}
CLASSES, BATCH, LR, TEMPERATURE = 10, 64, 1e-3, 4.0
STEPS = 4  # in one timed run of a training step
RUN = 0.01  # seconds, the least that one timed run of a loss takes
MAP, LOGITS = (64, 256, 8, 8), (256, 1000)
PACKAGES = ["torch", "torchvision", "kdlab", "torchdistill"]
EARLY, MIDDLE, LAST = "features.1", "features.2", "classifier"  # the student's taps
TEACHER_EARLY, TEACHER_MIDDLE = "features.denseblock1", "features.denseblock2"
# Of DenseNet121's 121 layers with weights the 92nd, the first output behind three quarters of them.
THREE_QUARTERS, THREE_BLOCKS = "features.denseblock4.denselayer2", "features.denseblock3"
TWELFTH_BLOCK = "layer3.4"  # of the 16 of ResNet34, which all cost about as much


@dataclass
class Case:
    """A loss and what it is compared with; both take the student's side, the teacher's and ``rest``.

    ``theirs`` is made of the loss, for its parameters; None where the peer is not installed.
    """

    name: str
    ours: nn.Module
    theirs: Callable[[Any], Callable[..., Tensor]] | None
    student: Any
    teacher: Any
    rest: tuple[Tensor, ...] = ()
    beside: str = "its formula"
    at_most: float | None = None
    memory_at_most: float | None = None

    def on(self, device: str, dtype: torch.dtype = torch.float32) -> "Case":
        """The same elsewhere, ready to be run."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        return replace(
            self,
            ours=deepcopy(self.ours).to(device, dtype),
            student=tree_map(lambda tensor: moved(tensor).requires_grad_(), self.student),
            teacher=tree_map(moved, self.teacher),
            rest=tuple(map(moved, self.rest)),
        )

    def run(self, loss: Callable[..., Tensor]) -> Run:
        """Forward and backward once."""

        def both() -> None:
            loss(self.student, self.teacher, *self.rest).backward()
            for tensor in tree_leaves(self.student):
                tensor.grad = None  # now, so that the next call starts from the same memory
            if tree_leaves(self.student)[0].is_cuda:
                torch.cuda.synchronize()

        return both

    def variants(self) -> dict[str, Run]:
        assert self.theirs is not None
        return {"ours": self.run(self.ours), "other": self.run(self.theirs(self.ours))}


def cases() -> Iterator[Case]:
    """Every loss at a size of its kind of use."""
    yield from beside_torchdistill()
    yield from beside_the_formula()


def beside_torchdistill() -> Iterator[Case]:
    case = partial(Case, beside="torchdistill", at_most=1.0)
    maps = _sides(MAP)
    yield case(f"DISTLoss {LOGITS}", DISTLoss(), _peer("DISTLoss", *PATHS, tau=TEMPERATURE), *_sides(LOGITS))
    yield case(f"ATLoss {MAP}", ATLoss(), _peer("ATLoss", {"pair": PAIR}), *maps)
    pair = {"pair": PAIR | {"weight": 3 / 1000}}  # which the peer leaves to its user
    yield case(f"ABLoss {MAP}", ABLoss(), _peer("AltActTransferLoss", pair, margin=1.0, reduction="mean"), *maps)
    yield case(f"FTLoss {MAP}", FTLoss(), _peer("FTLoss", paraphraser_path=".", translator_path="."), *maps)
    # The peer predicts in a wrapper of the student, and has only the rest in its loss.
    predicts = _peer("VIDLoss", {"pair": PAIR}, gives=lambda vid, s, t: ((vid.regressor(s), _variance(vid)), t))
    yield case(f"VIDLoss {MAP}", VIDLoss(MAP[1], MAP[1]), predicts, *maps)
    review = _peer("HierarchicalContextLoss", *PATHS, gives=lambda _, s, t: ((s[0], None), t[0]))
    yield case(f"ReviewKDLoss, one stage {MAP}", ReviewKDLoss(), review, *([side] for side in maps))
    yield case("PKTLoss (256, 512)", PKTLoss(), _peer("PKTLoss", *PATHS), *_sides((256, 512)))
    yield case("RKDLoss (64, 256)", RKDLoss(), _peer("RKDLoss", ".", ".", 25.0, 50.0, "mean"), *_sides((64, 256)))


def beside_the_formula() -> Iterator[Case]:
    maps, logits, target = _sides(MAP), _sides(LOGITS), torch.randint(LOGITS[1], (LOGITS[0],))
    yield Case(f"LabelledCrossEntropy {LOGITS}", LabelledCrossEntropy(), lambda _: F.cross_entropy, logits[0], target)
    yield Case(f"DKDLoss {LOGITS}", DKDLoss(), lambda _: _dkd, *logits, (target,))
    yield Case(f"HintLoss {MAP}", HintLoss(), lambda _: F.mse_loss, *maps)
    yield Case(f"OFDLoss {MAP}", OFDLoss(-torch.rand(MAP[1])), _ofd, *maps)
    shape = (8, 19, 128, 128)
    yield Case(f"CWDLoss {shape} (goal: 1.5 times faster)", CWDLoss(4.0), lambda _: _cwd, *_sides(shape), at_most=0.667)
    shape = (16, 128, 16, 16)
    yield Case(f"MGDLoss {shape}", MGDLoss(128, 128), _mgd, *_sides(shape))
    first, last = _sides((64, 64, 16, 16)), _sides((64, 128, 16, 16))
    pairs = map(list, zip(first, last, strict=True))
    yield Case("FSPLoss (64, 64, 16, 16) to (64, 128, 16, 16)", FSPLoss(), lambda _: _fsp, *pairs)
    yield Case(f"SPLoss {MAP}", SPLoss(), lambda _: _sp, *maps)
    crd = CRDLoss(512, 512, samples=10_000, negatives=4096)
    yield Case("CRDLoss (64, 512), 4096 of 10000", crd, _crd, *_sides((64, 512)), (torch.randperm(10_000)[:64],))
    name = "RKDLoss (64, 256) (goal: 10 times faster)"
    yield Case(name, RKDLoss(), lambda _: _rkd, *_sides((64, 256)), at_most=0.1)
    name = "RKDLoss (256, 512) (goal: 20 times faster)"
    yield Case(name, RKDLoss(), lambda _: _rkd, *_sides((256, 512)), at_most=0.05, memory_at_most=1.0)


def _sides(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.randn(shape), torch.randn(shape)


def _peer(
    name: str, *args: Any, gives: Callable[[Any, Any, Any], tuple[Any, Any]] = lambda _, s, t: (s, t), **kwargs: Any
) -> Callable[[Any], Callable[..., Tensor]] | None:
    """torchdistill's loss; ``gives`` makes its two sides of our loss and ours."""
    if NO_PEER:
        return None
    loss = getattr(peer, name)(*args, **kwargs)

    def of(ours: nn.Module) -> Callable[..., Tensor]:
        def theirs(student: Any, teacher: Any) -> Tensor:
            student, teacher = gives(ours, student, teacher)
            return loss({".": {"output": student}}, {".": {"output": teacher}})

        return theirs

    return of


def _variance(vid: VIDLoss) -> Tensor:
    return vid.variance[:, None, None]


def _dkd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    mine = F.one_hot(target, student.shape[1]).bool()
    pairs, others = [], []
    for z in (student / TEMPERATURE, teacher / TEMPERATURE):
        p = F.softmax(z, dim=1)
        pairs.append(torch.stack([(p * mine).sum(1), (p * ~mine).sum(1)], dim=1))
        others.append(F.log_softmax(z - 1000 * mine, dim=1))
    tckd = F.kl_div(pairs[0].log(), pairs[1], reduction="batchmean")
    nckd = F.kl_div(others[0], others[1].exp(), reduction="batchmean")
    return (tckd + 8 * nckd) * TEMPERATURE**2


def _ofd(ours: OFDLoss) -> Callable[..., Tensor]:
    def literal(student: Tensor, teacher: Tensor) -> Tensor:
        teacher = torch.maximum(teacher, ours.margin[:, None, None])
        counts = ((student > teacher) | (teacher > 0)).to(student.dtype)
        return ((student - teacher) ** 2 * counts).sum() / len(student) / 1000

    return literal


def _cwd(student: Tensor, teacher: Tensor) -> Tensor:
    p_student, p_teacher = (F.softmax(x.flatten(2) / TEMPERATURE, dim=2) for x in (student, teacher))
    kl = (p_teacher * (p_teacher.log() - p_student.log())).sum()
    return kl * TEMPERATURE**2 / student.shape[:2].numel()


def _mgd(ours: MGDLoss) -> Callable[..., Tensor]:
    def literal(student: Tensor, teacher: Tensor) -> Tensor:
        n, _, h, w = student.shape
        kept = torch.where(torch.rand(n, 1, h, w, device=student.device) < 1 - ours.mask_ratio, 1.0, 0.0)
        generated = ours.generator(student * kept.to(student.dtype))
        return ((generated - teacher) ** 2).sum() / n

    return literal


def _fsp(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    flows = [torch.einsum("nchw,ndhw->ncd", *maps) / maps[0].shape[2:].numel() for maps in (student, teacher)]
    return ((flows[0] - flows[1]) ** 2).mean()


def _sp(student: Tensor, teacher: Tensor) -> Tensor:
    grams = [F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (student, teacher)]
    return ((grams[0] - grams[1]) ** 2).sum() / len(student) ** 2


def _rkd(student: Tensor, teacher: Tensor) -> Tensor:
    distances, cosines = [], []
    for x in (student, teacher.detach()):
        gaps = x[None] - x[:, None]  # (n, n, d), and of these all n cubed products
        d = gaps.square().sum(2).clamp(min=1e-12).sqrt() * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
        distances.append(d / d[d > 0].mean())
        units = F.normalize(gaps, dim=2)
        cosines.append(units @ units.mT)
    return 25 * F.smooth_l1_loss(*distances) + 50 * F.smooth_l1_loss(*cosines)


def _crd(ours: CRDLoss) -> Callable[..., Tensor]:
    ours = deepcopy(ours)
    banks = {"student": ours.student_bank, "teacher": ours.teacher_bank}
    z: dict[str, Tensor] = {}
    samples, c = ours.samples, ours.negatives / ours.samples

    def literal(student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        embedded = {
            "student": F.normalize(ours.student_embed(student)), "teacher": F.normalize(ours.teacher_embed(teacher))
        }  # fmt: skip
        drawn = torch.randint(samples, (len(index), ours.negatives), device=index.device)
        drawn = torch.cat([index[:, None], drawn], dim=1)
        total = student.new_zeros(())
        for side, other in (("student", "teacher"), ("teacher", "student")):
            rows = banks[other][drawn]  # (n, 1 + K, dim)
            p = (torch.einsum("nkd,nd->nk", rows, embedded[side]) / ours.temperature).exp()
            p = p / z.setdefault(side, p.detach().mean() * samples)
            own, others = p[:, 0], p[:, 1:]
            logs = (own / (own + c + ours.EPS)).log().sum() + (c / (others + c + ours.EPS)).log().sum()
            total = total - logs / len(index)
        for side, bank in banks.items():
            moved = ours.momentum * bank[index] + (1 - ours.momentum) * embedded[side].detach()
            banks[side] = bank.index_copy(0, index, F.normalize(moved))
        return total

    return literal


def time(device: str, repeats: int) -> list[Row]:
    """Each loss, forward and backward, and its value in float64."""
    rows = []
    for case in cases():
        if case.theirs is None:
            rows.append(Row(f"{case.name}: {NO_PEER}"))
            continue
        rows.append(_same_value(case.on(device, torch.float64)))
        variants = case.on(device).variants()
        # So many of each in a row that a timed run is long enough, and rarely interrupted. A single call of the shorter
        # one would be timed in the caches that the longer one has left.
        once = {name: min(timeit(run, number=1) for _ in range(3)) for name, run in variants.items()}
        calls = {name: max(1, round(RUN / taken)) for name, taken in once.items()}
        times = take_turns(variants, repeats, calls)
        row = compare(f"{case.name}, beside {case.beside}", times["ours"], times["other"], case.at_most)
        rows.insert(-1, row)
    return rows


def _same_value(case: Case) -> Row:
    values = []
    for loss in (case.theirs(case.ours), case.ours):
        torch.manual_seed(0)  # for the same mask, the same negatives
        values.append(loss(case.student, case.teacher, *case.rest).item())
    other, ours = values
    apart = abs(ours / other - 1)
    return Row(
        f"its value, {case.name}", f"{ours:.8g}", f"{other:.8g}", f"{ours / other:.7f}", "1 to 1e-5", yes(apart <= 1e-5)
    )


def memory(device: str, repeats: int) -> list[Row]:
    """The most memory that each loss takes during a call, forward and backward, above its inputs."""
    rows = []
    for case in cases():
        if case.theirs is None:
            rows.append(Row(f"{case.name}: {NO_PEER}"))
            continue
        variants = case.on(device).variants()
        rows.append(memory_row(f"{case.name}, beside {case.beside}", variants, device, case.memory_at_most))
    return rows


def compiled(device: str, repeats: int) -> list[Row]:
    """Each loss under torch.compile, beside itself as it is."""
    rows = []
    for case in cases():
        torch._dynamo.reset()
        case = case.on(device)
        variants = {"ours": case.run(torch.compile(case.ours)), "other": case.run(deepcopy(case.ours))}
        times = take_turns(variants, repeats)
        rows.append(compare(case.name, times["ours"], times["other"]))
    return rows


def step(device: str, repeats: int) -> list[Row]:
    """A training step with three taps through Distiller, and the same step written by hand."""
    batches = [_to(device, batch) for batch in islice(DataLoader(load_digits().train, BATCH), STEPS)]
    torch.manual_seed(1)
    teacher = place(densenet121(CLASSES), torch.device(device)).eval()
    terms = [
        Term("early", ATLoss(), student=EARLY, teacher=TEACHER_EARLY),
        Term("middle", ATLoss(), student=MIDDLE, teacher=TEACHER_MIDDLE),
        Term("kd", KDLoss(TEMPERATURE), student=LAST, teacher=LAST),
    ]
    rows = []
    for what, live in (("cached teacher", False), ("DenseNet121 run to its end", True)):
        students: dict[str, StudentCNN] = {}
        with torch.no_grad():
            known = [None if live else _teacher_by_hand(teacher, images) for images, _ in batches]

        def through_kdlab(students: dict = students, known: list = known) -> Run:
            students["ours"] = student = _student(device)
            # The example makes the first pass, in which a distiller learns what its taps can leave out.
            distiller = Distiller(student, teacher, terms, task=nn.CrossEntropyLoss(), example=batches[0])
            return partial(_train, student, lambda *batch: distiller(*batch)["total"], batches, known)

        def by_hand(students: dict = students, known: list = known) -> Run:
            students["other"] = student = _student(device)
            return partial(_train, student, partial(_total_by_hand, student, teacher), batches, known)

        times = interleave({"ours": through_kdlab, "other": by_hand}, repeats)
        ours, other = (torch.cat([p.flatten() for p in students[name].parameters()]) for name in ("ours", "other"))
        apart = (ours - other).abs().max().item()
        rows.append(compare(f"step, {what}", times["ours"] / STEPS, times["other"] / STEPS, at_most=1.02))
        what = f"largest difference of the weights after {STEPS} of these"
        rows.append(Row(what, f"{apart:.1g}", goal="0", met=yes(not apart)))
    return rows


def _train(student: nn.Module, total: Callable[..., Tensor], batches: list[Any], known: list[Any]) -> None:
    optimizer = AdamW(student.parameters(), LR, fused=True)
    torch.manual_seed(0)  # for the same dropout
    for (images, labels), observed in zip(batches, known, strict=True):
        optimizer.zero_grad()
        total(images, labels, observed).backward()
        optimizer.step()
    if next(student.parameters()).is_cuda:
        torch.cuda.synchronize()


def _total_by_hand(student: StudentCNN, teacher: nn.Module, images: Tensor, labels: Tensor, known: Any) -> Tensor:
    if known is None:
        with torch.no_grad():
            known = _teacher_by_hand(teacher, images)
    early = student.features[1](student.features[0](images))
    middle = student.features[2](early)
    logits = student.classifier(student.features[3](middle).flatten(1))
    at, kd = ATLoss(), KDLoss(TEMPERATURE)
    total = F.cross_entropy(logits, labels) + at(early, known[TEACHER_EARLY])
    return total + at(middle, known[TEACHER_MIDDLE]) + kd(logits, known[LAST])


def _teacher_by_hand(teacher: Any, images: Tensor) -> dict[str, Tensor]:
    read = {}
    for name, layer in teacher.features.named_children():
        images = read[f"features.{name}"] = layer(images)
    features = F.adaptive_avg_pool2d(F.relu(images), 1).flatten(1)
    return {name: read[name] for name in (TEACHER_EARLY, TEACHER_MIDDLE)} | {LAST: teacher.classifier(features)}


def stop(device: str, repeats: int) -> list[Row]:
    """A teacher stopped after its last tap, on 64 digits; goal: a quarter saved at three quarters of the depth."""
    images, _ = _to(device, next(iter(DataLoader(load_digits().train, BATCH))))
    densenet, resnet = (place(make(), torch.device(device)) for make in (partial(densenet121, CLASSES), resnet34))

    def synchronised(run: Run) -> None:
        with torch.no_grad():
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    def by_hand() -> None:
        x = images
        for name, layer in densenet.features.named_children():
            x = layer(x)
            if f"features.{name}" == THREE_BLOCKS:
                return

    rows = []
    for teacher, tap, depth, beside, other, at_most in (
        (resnet, TWELFTH_BLOCK, "block 12 of 16", "its end", partial(resnet, images), 0.75),
        (densenet, THREE_QUARTERS, "layer 92 of 121", "its end", partial(densenet, images), 0.75),
        (densenet, THREE_BLOCKS, "layer 87 of 121", "its end", partial(densenet, images), None),
        (densenet, THREE_BLOCKS, "layer 87 of 121", "these layers by hand", by_hand, 1.02),
    ):
        term = Term("at", ATLoss(), student=MIDDLE, teacher=tap)
        distiller = Distiller(_student(device), teacher, [term], task=nn.CrossEntropyLoss())
        runs = {"ours": partial(distiller.observe_teacher, images), "other": other}
        times = take_turns({name: partial(synchronised, run) for name, run in runs.items()}, repeats)
        what = f"{type(teacher).__name__} until {tap}, {depth}, beside {beside}"
        rows.append(compare(what, times["ours"], times["other"], at_most))
    return rows


def chapters(device: str, repeats: int) -> list[Row]:
    """Chapters 02 and 03 executed in the fast profile, with a cache that is empty at first."""
    return time_chapters(["02_taps_and_connectors", "03_the_loss_zoo"], at_most=240)


def _student(device: str) -> StudentCNN:
    torch.manual_seed(0)
    return place(StudentCNN(CLASSES), torch.device(device))


def _to(device: str, batch: Any) -> Any:
    return [tensor.to(device) for tensor in batch]


PARTS: Parts = {
    "time": (time, 25), "memory": (memory, 1), "step": (step, 100), "stop": (stop, 30), "compiled": (compiled, 15),
    "chapters": (chapters, 1),
}  # fmt: skip

if __name__ == "__main__":
    command_line(__doc__, PARTS, PACKAGES, "losses", only_cuda=["compiled"])
