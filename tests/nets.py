"""Small nets with known answers, digits, and the CIFAR-10 net and photographs of packages."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from alignment_security.attacks.attacked_model import AttackedModel

MODEL_FIELDS = {"exact", "batch_size", "seed", "log"}


def rows_of(generator) -> pd.DataFrame:
    """The rows that an attack yields, as one table."""
    return pd.DataFrame([row for rows in generator for row in rows])


def attack_rows(run, net, images, *arguments, n_outputs=10, **options) -> pd.DataFrame:
    """The rows of an attack, such as `run_autoattack`, on a network; options also of its model."""
    fields = {name: options.pop(name) for name in MODEL_FIELDS & options.keys()}
    return rows_of(run(AttackedModel(net, n_outputs, **fields), images, *arguments, **options))


class Linear(nn.Module):
    """logits = W x + b on flattened pixels."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", torch.as_tensor(weight, dtype=torch.float32))
        self.register_buffer("bias", torch.as_tensor(bias, dtype=torch.float32))

    def forward(self, x):
        return x.flatten(1) @ self.weight.T + self.bias


def two_class(distance: float, norm: str, size=(1, 8, 8), seed: int = 0, middle: float = 0.5):
    """(net, image) of class 0, at `distance` from class 1 in `norm` if no pixel clips."""
    weight = torch.randn(int(np.prod(size)), generator=torch.Generator().manual_seed(seed))
    dual = {"L2": weight.norm(), "Linf": weight.abs().sum(), "L1": weight.abs().max()}[norm]
    bias = distance * dual - (weight * middle).sum()
    return Linear(
        torch.stack([weight, torch.zeros_like(weight)]), torch.stack([bias, torch.tensor(0.0)])
    ), torch.full(size, middle)


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec and spec.submodule_search_locations, f"{package} is not installed"
    return Path(spec.submodule_search_locations[0])


def cifar_resnet18():
    """The CIFAR-10 ResNet-18 inside the pyautoattack wheel (pixels in [0, 1])."""
    import sys

    examples = folder_of("pyautoattack") / "examples"
    sys.path.insert(0, str(examples))
    try:
        from resnet import ResNet18
    finally:
        sys.path.remove(str(examples))
    net = ResNet18()
    state = torch.load(examples / "model_test.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def cifar_photographs(net=None):
    """The 20 CIFAR-10 photographs of the foolbox wheel as (name, image, label).

    With a `net`, only those that it classifies correctly.
    """
    rows = []
    for path in sorted((folder_of("foolbox") / "data").glob("cifar10_*.png")):
        x = (
            torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float()
            / 255
        )
        rows.append((path.name, x, int(path.stem.split("_")[-1])))
    if net is None:
        return rows
    with torch.no_grad():
        return [row for row in rows if int(net(row[1][None]).argmax()) == row[2]]


def digits():
    """scikit-learn's 1797 8x8 digits as (name, image (1, 8, 8) in [0, 1], label)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.images / 16).float()[:, None]
    return [(f"digit{i:04d}", x[i], int(data.target[i])) for i in range(len(x))]


def digits_net(eps: float = 0.1, epochs: int = 15, seed: int = 0, width: int = 16):
    """A small net trained on the first 1200 digits, in seconds.

    With eps > 0 the training is adversarial (3 PGD steps in Linf).
    """
    torch.manual_seed(seed)
    rows = digits()[:1200]
    x, y = torch.stack([r[1] for r in rows]), torch.tensor([r[2] for r in rows])
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            z = x[batch]
            for _ in range(3 if eps else 0):
                leaf = z.clone().requires_grad_()
                (grad,) = torch.autograd.grad(
                    nn.functional.cross_entropy(net(leaf), y[batch]), leaf
                )
                z = (z + 0.67 * eps * grad.sign()).clamp(x[batch] - eps, x[batch] + eps).clamp(0, 1)
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(z), y[batch]).backward()
            optimiser.step()
    return net.eval().requires_grad_(False)


class NoisyPixels(nn.Module):
    """A net on pixels with Gaussian noise, drawn in every pass."""

    def __init__(self, net, std):
        super().__init__()
        self.net, self.std = net, std

    def forward(self, x):
        return self.net(x + self.std * torch.randn_like(x))


def share_wrong_at(net, point, label, draws=1000) -> float:
    """Of the draws of a random net at a point (C, H, W)."""
    with torch.no_grad():
        logits = net(point.expand(draws, *point.shape))
    return float((logits.argmax(1) != label).float().mean())


class RowCounter(nn.Module):
    """A net that counts the rows that go forward and backward, without idle ones.

    Idle rows are copies of the last row. Two images of a batch are never at the same point.
    """

    def __init__(self, net):
        super().__init__()
        self.net, self.forwards, self.backwards = net, 0, 0

    def forward(self, x):
        rows = len(x)
        while rows > 1 and torch.equal(x[rows - 1], x[rows - 2]):
            rows -= 1
        self.forwards += rows
        logits = self.net(x)
        if logits.requires_grad:
            self.backwards += rows
        return logits


class DigitsWithMaps(torch.utils.data.Dataset):
    """Digits for training, with or without maps: (epoch, position) -> what `collate` takes."""

    def __init__(self, rows, maps=None):
        self.rows, self.maps = rows, maps
        self.ids = tuple(name for name, _, _ in rows)

    def __getitem__(self, key):
        _, i = key
        _, x, label = self.rows[i]
        drawn = torch.zeros(x.shape[1:]) if self.maps is None else self.maps[i]
        return i, x, label, drawn, bool(drawn.any())


def ink_maps(rows):
    """Synthetic maps, not drawn by people: the strokes of each digit, blurred by a 3 x 3 mean."""
    x = torch.stack([image for _, image, _ in rows])
    return nn.functional.avg_pool2d(x, 3, stride=1, padding=1)[:, 0]


def untrained_digits_net(seed: int = 0, width: int = 16, activation=nn.ReLU):
    """The architecture of digits_net with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            activation(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            activation(),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 64),
            activation(),
            nn.Linear(64, 10),
        )
