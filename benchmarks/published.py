"""How the authors' own losses are called, for benchmarks/authors.py. Their code is read from checkouts, none is here.

Only the definitions that a loss needs are taken out of their files, so that neither an old version of torch nor the
rest of a training script has to run; what they ask of a GPU stays where it is.
"""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods import Batch, KDMethod, Signals


@dataclass
class Side:
    """A bound method of ours and what it is given: signals of its paired stages."""

    method: KDMethod
    student: Signals
    teacher: Signals
    batch: Batch

    def shapes(self) -> tuple[list[torch.Size], list[torch.Size]]:
        return [x.shape for x in self.student.features], [x.shape for x in self.teacher.features]


@dataclass
class Published:
    """The authors' loss on the same tensors.

    Attributes:
        modules: what is trained along with the student.
        scale: times this, their value is ours.
        checked: our value and theirs at one and the same draw, where the losses draw at random.
        differs: what either side computes that the other does not.
    """

    loss: Callable[[], Tensor]
    modules: Sequence[nn.Module] = ()
    scale: float = 1.0
    differs: str = ""
    checked: tuple[Callable[[], Tensor], Callable[[], Tensor]] | None = None


@dataclass(frozen=True)
class Entry:
    method: str
    repository: str
    build: Callable[[Path, Side], Published]
    hyper: dict[str, Any] = field(default_factory=dict)


def definitions(path: Path, *names: str, **known: Any) -> Any:
    """Classes and functions of a file by name, without their decorators; `known` is what else they refer to."""
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names]
    for node in found:
        node.decorator_list = []
    scope = {"torch": torch, "nn": nn, "F": F, "math": math, "np": np, **known}
    exec(compile(ast.Module(list(found), []), str(path), "exec"), scope)
    return SimpleNamespace(**{name: scope[name] for name in names})


def branch(path: Path, test: str) -> Any:
    """The compiled statements under the first `if` of this test."""
    tree = ast.parse(path.read_text())
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == test)
    return compile(ast.Module(found.body, []), str(path), "exec")


@contextmanager
def on_cpu() -> Iterator[None]:
    """Moves to a GPU do nothing."""
    to = nn.Module.to

    def stay(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return self if args == ("cuda",) else to(self, *args, **kwargs)

    with ExitStack() as stack:
        for owner in (Tensor, nn.Module):
            stack.enter_context(patch.object(owner, "cuda", lambda self, *args, **kwargs: self))
        stack.enter_context(patch.object(nn.Module, "to", stay))
        yield


def alike(ours: Iterable[nn.Module | None], theirs: Iterable[nn.Module | None]) -> None:
    """Copies our parameters into theirs, in order.

    Raises:
        ValueError: they are not of the same shapes.
    """
    a, b = ([p for module in side if module is not None for p in module.parameters()] for side in (ours, theirs))
    if [p.shape for p in a] != [p.shape for p in b]:
        raise ValueError("the connectors are not the same")
    with torch.no_grad():
        for mine, other in zip(a, b, strict=True):
            other.copy_(mine)


def pooled(side: Side) -> tuple[Tensor, Tensor]:
    assert side.student.embedding is not None
    assert side.teacher.embedding is not None
    return side.student.embedding, side.teacher.embedding


def of_stages(path: str, name: str, *args: Any) -> Callable[[Path, Side], Published]:
    """A loss that gives one number a stage."""

    def build(code: Path, side: Side) -> Published:
        loss = getattr(definitions(code / path, name), name)(*args)
        return Published(lambda: sum(loss(side.student.features, side.teacher.features)))

    return build


def of_embeddings(path: str, name: str, differs: str = "") -> Callable[[Path, Side], Published]:
    def build(code: Path, side: Side) -> Published:
        loss = getattr(definitions(code / path, name), name)()
        return Published(lambda: loss(*pooled(side)), differs=differs)

    return build


def fitnets(code: Path, side: Side) -> Published:
    (s,), (t,) = side.shapes()
    connector = definitions(code / "models/util.py", "ConvReg").ConvReg(s, t)
    alike([side.method.parts], [connector])
    loss = definitions(code / "distiller_zoo/FitNet.py", "HintLoss").HintLoss()
    return Published(lambda: loss(connector(side.student.features[0]), side.teacher.features[0]), [connector])


def ab(code: Path, side: Side) -> Published:
    loss = definitions(code / "distiller_zoo/AB.py", "ABLoss").ABLoss(len(side.student.preact))
    return Published(lambda: sum(loss(side.student.preact, side.teacher.preact)), scale=1 / 0.003)


def fsp(code: Path, side: Side) -> Published:
    loss = definitions(code / "distiller_zoo/FSP.py", "FSP").FSP(*side.shapes())
    return Published(lambda: sum(loss(side.student.features, side.teacher.features)))


def ft(code: Path, side: Side) -> Published:
    (s,), (t,) = side.shapes()
    util = definitions(code / "models/util.py", "Paraphraser", "Translator")
    translator, paraphraser = util.Translator(s, t), util.Paraphraser(t).eval()
    alike([side.method.parts.translators, side.method.parts.encoders], [translator, paraphraser.encoder])
    loss = definitions(code / "distiller_zoo/FT.py", "FactorTransfer").FactorTransfer()

    def value() -> Tensor:
        return loss(translator(side.student.features[0]), paraphraser(side.teacher.features[0], is_factor=True))

    return Published(value, [translator, paraphraser], differs="theirs has gradients of the frozen paraphraser too")


def vid(code: Path, side: Side) -> Published:
    kind = definitions(code / "distiller_zoo/VID.py", "VIDLoss").VIDLoss
    losses = nn.ModuleList(kind(s[1], t[1], t[1]) for s, t in zip(*side.shapes(), strict=True))
    alike([side.method.parts], [losses])
    maps = list(zip(losses, side.student.features, side.teacher.features, strict=True))
    return Published(lambda: torch.stack([loss(s, t) for loss, s, t in maps]).sum(), [losses])


def cckd(code: Path, side: Side) -> Published:
    embed = definitions(code / "models/util.py", "LinearEmbed").LinearEmbed
    heads = nn.ModuleList(embed(x.shape[1], 128) for x in pooled(side))
    if side.method.parts is not None:
        alike([side.method.parts], [heads])
    loss = definitions(code / "distiller_zoo/CC.py", "Correlation").Correlation()
    differs = "" if side.method.parts is not None else "theirs compares neighbours after two heads, ours all pairs"
    return Published(lambda: loss(*(h(x) for h, x in zip(heads, pooled(side), strict=True))), [heads], differs=differs)


def crd(code: Path, side: Side) -> Published:
    from kdsearch.kd_methods.functional import crd as functional

    parts, ids = side.method.parts, side.batch.ids
    samples, own = len(parts.groups), parts.largest == 1  # without classes theirs draws the negatives itself
    s, t = pooled(side)
    options = SimpleNamespace(s_dim=s.shape[1], t_dim=t.shape[1], feat_dim=parts.student_bank.shape[1])
    options.n_data, options.nce_k = samples, parts.negatives
    options.nce_t, options.nce_m = parts.temperature, parts.momentum
    memory = definitions(code / "crd/memory.py", "ContrastMemory", "AliasMethod").ContrastMemory
    kinds = definitions(
        code / "crd/criterion.py", "CRDLoss", "ContrastLoss", "Embed", "Normalize", ContrastMemory=memory, eps=1e-7
    )
    with patch("builtins.print"):
        loss = kinds.CRDLoss(options)
        alike([parts.student_head, parts.teacher_head], [loss.embed_s, loss.embed_t])
        loss.contrast.memory_v1.copy_(parts.student_bank)
        loss.contrast.memory_v2.copy_(parts.teacher_bank)
    index = torch.cat((ids[:, None], parts.draw_negatives(ids)), 1)

    def ours() -> Tensor:
        heads = F.normalize(parts.student_head(s)), F.normalize(parts.teacher_head(t))
        return functional(*heads, student_bank=parts.student_bank, teacher_bank=parts.teacher_bank, index=index)

    def theirs(index: Tensor | None) -> Tensor:
        with patch("builtins.print"):  # it says what its constants are
            return loss(s, t, ids, index).sum()

    timed = functools.partial(theirs, None if own else index)
    differs = "" if own else "ours draws the negatives, theirs is given them by its data loader"
    return Published(timed, [loss.embed_s, loss.embed_t], differs=differs, checked=(ours, lambda: theirs(index)))


def semckd(code: Path, side: Side) -> Published:
    s, t = side.shapes()
    parts, factor = side.method.parts, side.method.hyper["factor"]
    util = definitions(code / "models/util.py", "SelfA", "AAEmbed", "MLPEmbed", "Normalize")
    module = util.SelfA(len(s), len(t), s[0][0], [x[1] for x in s], [x[1] for x in t], factor)
    pairs = [getattr(module, f"regressor{i}{j}") for i in range(len(s)) for j in range(len(t))]
    attention = [getattr(module, f"query_weight{i}") for i in range(len(s))]
    attention += [getattr(module, f"key_weight{j}") for j in range(len(t))]
    alike([parts.queries, parts.keys, parts.regressors], [*attention, *pairs])
    loss = definitions(code / "distiller_zoo/SemCKD.py", "SemCKDLoss").SemCKDLoss()
    return Published(lambda: loss(*module(side.student.features, side.teacher.features)), [module])


def irg(code: Path, side: Side) -> Published:
    from kdsearch.kd_methods.functional import irg as functional

    loss = definitions(code / "distiller_zoo/IRG.py", "IRGLoss").IRGLoss()
    maps, vertices = (side.student.features, side.teacher.features), pooled(side)
    hyper = {name: value for name, value in side.method.hyper.items() if name != "weight"}

    def ours() -> Tensor:
        return functional(*maps, *vertices, *vertices, **hyper)

    def theirs() -> Tensor:
        return loss(*vertices, *maps)

    return Published(theirs, differs="vertices are the embedding in theirs, the logits in ours", checked=(ours, theirs))


def reviewkd(code: Path, side: Side) -> Published:
    kinds = definitions(code / "CIFAR-100/model/reviewkd.py", "ReviewKD", "ABF", "hcl")
    s, t = pooled(side)
    features = [*side.student.features, s[:, :, None, None]]
    targets = [*side.teacher.preact, t[:, :, None, None]]
    sizes = [[x.shape[-1] for x in reversed(maps)] for maps in (features, targets)]

    def network(images: Tensor, is_feat: bool) -> tuple[list[Tensor], Tensor]:
        return features, images

    module = kinds.ReviewKD(network, [x.shape[1] for x in features], [x.shape[1] for x in targets], *sizes)
    for ours, theirs in zip(side.method.parts.levels, reversed(module.abfs), strict=True):
        mine = [ours.reduce, ours.reduce_norm, ours.expand, ours.expand_norm, ours.attend]
        alike(mine, [theirs.conv1, theirs.conv2, theirs.att_conv])
    return Published(lambda: kinds.hcl(module(s)[0], targets), [module])


class Backbone(nn.Module):
    """Stands for a network whose features are known."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def get_channel_num(self) -> list[int]:
        return [x.shape[1] for x in self.features]

    def get_bn_before_relu(self) -> list[nn.Module]:
        return [nn.BatchNorm2d(x.shape[1]) for x in self.features]

    def extract_feature(self, images: Tensor, preReLU: bool) -> tuple[list[Tensor], Tensor]:
        return list(self.features), images


def ofd(code: Path, side: Side) -> Published:
    from scipy.stats import norm

    names = ("Distiller", "distillation_loss", "build_feature_connector", "get_margin_from_BN")
    kind = definitions(code / "CIFAR-100/distiller.py", *names, norm=norm).Distiller
    module = kind(Backbone(side.teacher.preact), Backbone(side.student.preact))
    alike([side.method.parts.connect], [module.Connectors])
    for k in range(len(side.teacher.preact)):
        module.get_buffer(f"margin{k + 1}").copy_(side.method.parts.get_buffer(f"margin{k}").view(1, -1, 1, 1))
    s, _ = pooled(side)
    return Published(lambda: module(s)[1] / len(s), [module])


def ofd_of_mdistiller(code: Path, side: Side) -> Published:
    names = ("OFD", "ConnectorConvBN", "feat_loss")
    kinds = definitions(code / "mdistiller/distillers/OFD.py", *names, Distiller=nn.Module)
    module = SimpleNamespace(_align_list=lambda *lists: lists, margins=[])
    channels = [[x.shape[1] for x in maps] for maps in (side.student.preact, side.teacher.preact)]
    module.connectors = kinds.ConnectorConvBN(*channels)
    alike([side.method.parts.connect], [module.connectors])
    for k in range(len(side.teacher.preact)):
        module.margins.append(side.method.parts.get_buffer(f"margin{k}").view(1, -1, 1, 1))
    return Published(lambda: kinds.OFD.ofd_loss(module, side.student.preact, side.teacher.preact), [module.connectors])


def ickd(code: Path, side: Side) -> Published:
    (s,), (t,) = side.shapes()
    kinds = definitions(code / "Cifar100/distiller_zoo/ICKD.py", "ICKDLoss", "Embed")
    loss = kinds.ICKDLoss(SimpleNamespace(s_dim=s[1], feat_dim=t[1]))
    alike([side.method.parts], [loss.embed_s])
    return Published(lambda: sum(loss(side.student.features, side.teacher.features)), [loss.embed_s])


def tat(code: Path, side: Side) -> Published:
    einops = importlib.import_module("einops")
    embed = definitions(code / "torchdistill/models/special.py", "Embed").Embed
    path = code / "torchdistill/losses/single.py"
    loss = definitions(path, "MaskedFM", rearrange=einops.rearrange, einsum=torch.einsum).MaskedFM({}, 1)
    (s,), (t,) = side.shapes()
    query, value = embed(s[1], t[1]), embed(s[1], t[1])
    alike([side.method.parts.queries, side.method.parts.values], [query, value])
    x, y = side.student.features[0], side.teacher.features[0]
    return Published(lambda: loss.batch_loss((x, query(x), value(x)), (y, y)), [query, value])


def vkd(code: Path, side: Side) -> Published:
    statements = branch(code / "engine.py", "args.alpha > 0")
    s, t = side.student.features[0], side.teacher.features[0]
    projector = nn.utils.parametrizations.orthogonal(nn.Linear(s.shape[1], t.shape[1], bias=False))
    student = SimpleNamespace(module=SimpleNamespace(projector=projector))
    with torch.no_grad():
        projector.weight = side.method.parts.projectors[0].weight.clone()

    def value() -> Tensor:
        scope = {"z_s": s.flatten(2).transpose(1, 2), "z_t_conv": t, "student": student, "F": F}
        exec(statements, {**scope, "args": SimpleNamespace(alpha=1.0)}, scope)
        loss = scope["repr_distill_loss"]
        assert isinstance(loss, Tensor)
        return loss

    return Published(value, [projector], differs="another parametrisation of the orthogonal matrix")


def freekd(code: Path, side: Side) -> Published:
    wavelets = importlib.import_module("pytorch_wavelets")
    known = {"DWTForward": wavelets.DWTForward, "DWTInverse": wavelets.DWTInverse}
    kinds = definitions(code / "mmrazor/models/losses/freekd.py", "FreeKDLoss", "MaskModule", **known)
    parts = side.method.parts
    loss = kinds.FreeKDLoss([t[1] for t in side.shapes()[1]], num_tokens=parts.prompts[0].shape[1])
    projectors = copy.deepcopy(parts.projectors)
    with torch.no_grad():
        for k, prompt in enumerate(parts.prompts):
            loss.mask_modules[k].mask_token.copy_(prompt)
    loss.requires_grad_(False)

    def value() -> Tensor:
        maps = [project(x) for project, x in zip(projectors, side.student.features, strict=True)]
        return loss(maps, side.teacher.features)

    return Published(value, [projectors])


class Encoder(nn.Module):
    """A network of which only the last layer is left."""

    def __init__(self, fc: Any) -> None:
        super().__init__()
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def bingo(code: Path, side: Side) -> Published:
    bags, mix = side.method.parts, side.batch.views["cutmix"].share
    assert mix is not None
    width, length = bags.queue.shape[1], len(bags.queue)
    flags = SimpleNamespace(s_arch="", pretrain_alg="")
    kinds = definitions(code / "moco/builder.py", "MoCo", FLAGS=flags, concat_all_gather=lambda keys: keys)
    head = copy.deepcopy(bags.head)
    last = nn.Linear(*bags.axes.shape)
    with torch.no_grad():
        last.weight.copy_(bags.axes.T)
        last.bias.copy_(-bags.centre @ bags.axes)
    made = {"dim": width, "K": length, "T": side.method.hyper["temperature"]}
    moco = kinds.MoCo(lambda num_classes: Encoder(head), lambda num_classes: Encoder(last), **made)
    moco._group_batch_shuffle_ddp = lambda x, *ranks: (x, None)
    moco._group_batch_unshuffle_ddp = lambda x, *order: x
    moco.queue.copy_(bags.queue.T)
    criterion = definitions(code / "main_moco.py", "MulposCrossEntropy").MulposCrossEntropy()
    asked = [side.student.embedding, *(side.student.views[name].embedding for name in ("member", "cutmix"))]
    keys = [side.teacher.views[name].embedding for name in ("key", "member_key")]
    own, share = side.method.hyper["own"], float(mix[0])

    def value() -> Tensor:
        outputs, mixed, target = moco(asked[0], keys[0], asked[1], keys[1], asked[2], *[None] * 5)
        losses = [criterion(x, target, w) for x, w in zip(outputs, ((own, 1 - own), (1 - own, own)), strict=True)]
        return (losses[0] + losses[1] + criterion(mixed, target, (share, 1 - share))) / 3

    return Published(value, [head], differs="our head on both sides; theirs is 2048 wide")


def darkrank(code: Path, side: Side) -> Published:
    distances = definitions(code / "metric/utils.py", "pdist").pdist
    loss = definitions(code / "metric/loss.py", "HardDarkRank", pdist=distances).HardDarkRank()
    return Published(lambda: loss(*pooled(side)))


ENTRIES = [
    Entry("fitnets", "repdistiller", fitnets),
    Entry("at", "repdistiller", of_stages("distiller_zoo/AT.py", "Attention")),
    Entry("nst", "repdistiller", of_stages("distiller_zoo/NST.py", "NSTLoss")),
    Entry("sp", "repdistiller", of_stages("distiller_zoo/SP.py", "Similarity")),
    Entry("fsp", "repdistiller", fsp),
    Entry("vid", "repdistiller", vid),
    Entry("ab", "repdistiller", ab),
    Entry("ft", "repdistiller", ft, {"form": "attention", "norm": True, "passes": 1}),
    Entry("crd", "repdistiller", crd),
    Entry("crd", "repdistiller", crd, {"negatives": "any"}),
    Entry("pkt", "repdistiller", of_embeddings("distiller_zoo/PKT.py", "PKT"), {"diagonal": True}),
    Entry("pkt", "repdistiller", of_embeddings("distiller_zoo/PKT.py", "PKT", "ours leaves the diagonal out")),
    Entry("rkd", "repdistiller", of_embeddings("distiller_zoo/RKD.py", "RKDLoss")),
    Entry("cckd", "repdistiller", cckd, {"kernel": "neighbours"}),
    Entry("cckd", "repdistiller", cckd),
    Entry("darkrank", "rkd", darkrank, {"transfer": "hard", "alpha": 3.0, "beta": 3.0, "normalise": False}),
    Entry("semckd", "semckd", semckd),
    Entry(
        "irg",
        "semckd",
        irg,
        {
            "edges": "embedding",
            "transformation": "graphs",
            "vertex_weight": 1.0,
            "edge_weight": 1.0,
            "transform_weight": 1.0,
        },
    ),
    Entry("reviewkd", "reviewkd", reviewkd),
    Entry("ofd", "ofd", ofd),
    Entry("ofd", "mdistiller", ofd_of_mdistiller),
    Entry("ickd", "ickd", ickd),
    Entry("tat", "tat", tat),
    Entry("vkd", "vkd", vkd, {"normalise": "layer"}),
    Entry("freekd", "freekd", freekd, {"variant": "published", "position": "none", "passes": 1}),
    Entry("bingo", "bingo", bingo, {"queue": 0.0512}),
]
"""Every comparison: a method of ours, in the form of the authors' code where it has several."""
