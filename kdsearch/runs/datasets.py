"""Data sets by name: the embedded digits, torchvision's small sets from a local root, and image folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdsearch.errors import UserError
from kdsearch.kd_methods.signals import UNLABELLED
from kdsearch.registry import nearest
from kdsearch.runs.data import Data, Split
from kdsearch.runs.views import Augmentation

TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
NAMES = ("digits", *TORCHVISION, "image_folder")


def load(
    name: str,
    *,
    root: str | None = None,
    validation: float | None = None,
    samples: int | None = None,
    image_size: int | None = None,
    shift: int | None = None,
    flip: bool | None = None,
    crop: float | None = None,
    labelled: float | None = None,
    unlabelled: str | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    loader_workers: int = 0,
) -> Data:
    """A data set in three splits.

    Args:
        validation: share of the training images set aside, class by class (digits have a fixed split of their own).
        samples: use at most so many training images, class-balanced.
        image_size: side in pixels: of an image folder's images (64 by default); other sets are resized to it.
        shift, flip, crop: augmentation; the data set's usual one where None.
        labelled: share of the training images that keep their labels, class by class.
        unlabelled: folder of further images without labels, for image folders.

    Raises:
        UserError: unknown name, missing or unreadable files.
    """
    if unlabelled is not None and name != "image_folder":
        raise UserError(f"data.unlabelled: only an image_folder takes further images, not {name}")
    if name == "digits":
        data = _digits(device)
        usual = Augmentation(shift=1)
    elif name in TORCHVISION:
        data = _torchvision(name, _need_root(name, root), validation or 0.1, samples, seed, device)
        usual = Augmentation(shift=4, flip=True) if name.startswith("cifar") else Augmentation(shift=2)
    elif name == "image_folder":
        data = _image_folder(
            _need_root(name, root),
            validation or 0.1,
            samples,
            image_size or 64,
            seed,
            device,
            loader_workers,
            _unlabelled(unlabelled),
        )
        usual = Augmentation(flip=True, crop=0.35)
    else:
        raise UserError(f"data.name: unknown data set {name!r}; {nearest(name, NAMES)}")
    if image_size is not None:
        data = _resized(data, image_size)
    if labelled is not None:
        data = _without_labels(data, labelled, seed)
    data.augmentation = Augmentation(
        usual.shift if shift is None else shift,
        usual.flip if flip is None else flip,
        usual.crop if crop is None else crop,
    )
    return data


def _need_root(name: str, root: str | None) -> Path:
    if root is None:
        raise UserError(f"data.root: {name} needs the folder its files are in; nothing is downloaded")
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"data.root: there is no folder {str(path)!r}")
    return path


IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def _unlabelled(folder: str | None) -> list[str]:
    """Image files in a folder and below it, sorted."""
    if folder is None:
        return []
    place = Path(folder).expanduser()
    found = sorted(str(path) for path in place.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise UserError(f"data.unlabelled: there is no image in {str(place)!r}")
    return found


def _without_labels(data: Data, share: float, seed: int) -> Data:
    """The same data where only a class-balanced share of the training samples keeps its label."""
    kept = data.subset(share, seed)
    labels = torch.full_like(data.train.labels, UNLABELLED)
    labels[kept] = data.train.labels[kept]
    return Data(
        data.name,
        Split(data.train.images, labels),
        data.validation,
        data.test,
        data.classes,
        data.augmentation,
        class_names=data.class_names,
        loader_workers=data.loader_workers,
    )


def _digits(device: str | torch.device) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8×8, split 900/300/597 by a fixed seed, class-balanced."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype("uint8"))[:, None]
    labels = torch.from_numpy(bunch.target).long()
    order = torch.from_numpy(_interleaved(bunch.target, seed=1797))
    parts = order[:900], order[900:1200], order[1200:]
    train, validation, test = (Split(images[p].to(device), labels[p].to(device)) for p in parts)
    return Data("digits", train, validation, test, 10, Augmentation(shift=1))


def _interleaved(labels: Any, seed: int) -> Any:
    """An order in which every prefix is nearly class-balanced: each class shuffled, then dealt out in turn."""
    import numpy as np

    generator = np.random.default_rng(seed)
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = (generator.permutation(len(members)) + generator.random()) / len(members)
    return np.argsort(rank, kind="stable")


def _resized(data: Data, side: int) -> Data:
    """The same images at another side; folders have decoded theirs at it."""
    from torchvision.transforms import functional as TF

    if data.input_shape[-2:] == (side, side):
        return data

    def at(split: Split) -> Split:
        assert isinstance(split.images, Tensor)
        parts = split.images.split(1024)  # interpolation goes by float32: not of all at once
        return Split(torch.cat([TF.resize(part, [side, side], antialias=True) for part in parts]), split.labels)

    splits = at(data.train), at(data.validation), at(data.test)
    return Data(data.name, *splits, data.classes, data.augmentation, class_names=data.class_names)


def _torchvision(
    name: str, root: Path, share: float, samples: int | None, seed: int, device: str | torch.device
) -> Data:
    import torchvision

    cls = getattr(torchvision.datasets, TORCHVISION[name])
    try:
        train, test = cls(str(root), train=True, download=False), cls(str(root), train=False, download=False)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"data.root: {name} cannot be read from {str(root)!r}: {error}".split("\n")[0]) from None

    def split(source: Any) -> Split:
        images = torch.as_tensor(source.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return Split(images.contiguous(), torch.as_tensor(source.targets).long())

    whole = split(train)
    keep, held_out = _split(whole.labels, share, samples, seed)
    parts = [Split(whole.images[ids].to(device), whole.labels[ids].to(device)) for ids in (keep, held_out)]
    tested = split(test)
    test_split = Split(tested.images.to(device), tested.labels.to(device))  # type: ignore[union-attr]
    names = [str(c) for c in train.classes]
    return Data(name, parts[0], parts[1], test_split, len(names), Augmentation(shift=4, flip=True), class_names=names)


def _split(labels: Tensor, share: float, samples: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Ids to train on and ids to validate on, class-balanced. `samples` bounds the first, and the second in
    proportion.
    """
    order = torch.from_numpy(_interleaved(labels.numpy(), seed))
    held = round(share * len(labels))
    keep, held_out = order[held:], order[:held]
    if samples is not None and samples < len(keep):
        held_out = held_out[: max(round(len(held_out) * samples / len(keep)), int(labels.max()) + 1)]
        keep = keep[:samples]
    return keep.sort().values, held_out.sort().values


class Folder(torch.utils.data.Dataset[Tensor]):
    """Image files decoded on demand to uint8 [3, size, size]: the short side resized, the centre cut out."""

    def __init__(self, files: list[str], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        from PIL import Image
        from torchvision.transforms import functional as TF

        try:
            with Image.open(self.files[index]) as opened:
                image = opened.convert("RGB")
        except OSError as error:
            raise UserError(f"data.root: {self.files[index]!r} is not a readable image: {error}") from None
        return TF.pil_to_tensor(TF.center_crop(TF.resize(image, self.size), [self.size, self.size]))


SMALL = 512 * 2**20  # bytes up to which decoded images are kept as one tensor


def _image_folder(
    root: Path,
    share: float,
    samples: int | None,
    size: int,
    seed: int,
    device: str | torch.device,
    workers: int,
    further: list[str],
) -> Data:
    """`root/train/<class>/*` and `root/val` or `root/test`; without either, a test split is cut off train as well.

    `further` files are training images without labels.
    """
    from torchvision.datasets import ImageFolder

    def read(folder: Path, class_to_idx: dict[str, int] | None = None) -> ImageFolder:
        try:
            found = ImageFolder(str(folder))
        except (FileNotFoundError, OSError) as error:
            raise UserError(f"data.root: {str(error).splitlines()[0]}") from None
        if class_to_idx is not None and found.class_to_idx != class_to_idx:
            odd = sorted(set(found.class_to_idx) ^ set(class_to_idx))
            raise UserError(f"data.root: the classes of {str(folder)!r} differ from train's: {', '.join(odd[:5])}")
        return found

    train = read(root / "train" if (root / "train").is_dir() else root)
    labels = torch.tensor(train.targets)
    files = [path for path, _ in train.samples]
    test_folder = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if test_folder is not None:
        tested = read(test_folder, train.class_to_idx)
        test_files, test_labels = [path for path, _ in tested.samples], torch.tensor(tested.targets)
        pool = torch.arange(len(files))
    else:
        pool, cut = _split(labels, share, None, seed + 1)
        test_files, test_labels = [files[int(i)] for i in cut], labels[cut]
    keep, held_out = _split(labels[pool], share, samples, seed)

    def split(paths: list[str], targets: Tensor) -> Split:
        folder = Folder(paths, size)
        if len(paths) * 3 * size * size <= SMALL:
            loaded = torch.stack([folder[k] for k in range(len(paths))])
            return Split(loaded.to(device), targets.to(device))
        return Split(folder, targets.to(device))

    shown = [files[int(i)] for i in pool[keep]] + further
    known = torch.cat([labels[pool][keep], torch.full((len(further),), UNLABELLED)])
    parts = [split(shown, known), split([files[int(i)] for i in pool[held_out]], labels[pool][held_out])]
    return Data(
        "image_folder", parts[0], parts[1], split(test_files, test_labels), len(train.classes),
        Augmentation(flip=True, crop=0.35), class_names=list(train.classes), loader_workers=workers,
    )  # fmt: skip
