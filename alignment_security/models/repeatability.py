"""Whether a network gives an image the same logits again, alone and among other images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alignment_security.common.out_of_memory import is_out_of_memory
from alignment_security.models.draws import seeded
from alignment_security.models.heads import REPEAT_RELATIVE, ModelError, logits_repeat

# share of the largest logit by which kernels for one row may round differently from those for more
ALONE_TOLERANCE = 0.02
# draws of a random network alone and in company, and by how many standard errors their means may
# differ: chance reaches 8 less than once in a million logits
COMPANY_DRAWS, LARGEST_Z = 20, 8.0
DETERMINISTIC = (
    "gave the same logits in the passes looked at; where it is not random, --budget rand asks 20 "
    "times for one answer, and --budget standard is the one for it"
)


def check_repeats(module: nn.Module, images: Tensor, logits: Tensor, name: str) -> None:
    """Raise ModelError unless a second pass over the images gives their logits (B, K) again."""
    with torch.no_grad():
        again = module(images)
    if not logits_repeat(logits, again):
        raise ModelError(
            f"{name}: gives other logits for the same images (random, as VOneNets are, or "
            "stateful): one pass of it decides nothing. A random network is attacked by "
            "`Linf --eps 1/255 --budget rand`"
        )


def check_company(module: nn.Module, image: Tensor, name: str) -> None:
    """Raise ModelError unless an image has the same logits alone, among copies and among others.

    image   (1, 3, H, W) in [0, 1]

    A network that normalises by the statistics of the batch has not. The batches of copies and of
    others have one size, hence the same kernels, and are compared up to rounding of a repeated
    pass. The image is asked about at both ends of its batch.
    """
    others = other_images(image)
    try:
        with torch.no_grad():
            alone = module(image)
            copies = module(image.repeat(len(others) + 1, 1, 1, 1))
            first = module(torch.cat([image, others]))[:1]
            last = module(torch.cat([others, image]))[-1:]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return  # there is memory for one image only, so that none has company
    limit = ALONE_TOLERANCE * float(alone.abs().max())
    is_alone_the_same = float((alone - copies).abs().max()) <= limit
    same = logits_repeat(first, copies[:1]) and logits_repeat(last, copies[-1:])
    if not (same and is_alone_the_same):
        raise company_error(name)


def company_error(name: str) -> ModelError:
    return ModelError(
        f"{name}: gives an image other logits among other images than alone (it uses statistics of "
        "the batch, as batch norm without running statistics does); it has no answer for an image. "
        "Load it with running statistics"
    )


def other_images(image: Tensor) -> Tensor:
    """Three images unlike a given one (1, C, H, W): negative, dark, and mirrored with contrast."""
    return torch.cat([1 - image, image / 8, image.flip(3).sub(0.5).mul(4).add(0.5).clamp(0, 1)])


# ---- random networks -----------------------------------------------------------------------------


def is_random(module: nn.Module, image: Tensor) -> bool:
    """Whether two passes over an image (1, 3, H, W) give other logits."""
    with torch.no_grad():
        return not logits_repeat(module(image), module(image))


def check_random(module: nn.Module, image: Tensor, name: str) -> None:
    """Raise ModelError unless seeds repeat a random network's draws, in any company.

    image   (1, 3, H, W) in [0, 1]
    """
    with torch.no_grad():
        with seeded(name, image.device):
            logits = module(image)
        with seeded(name, image.device):
            again = module(image)
    if not logits_repeat(logits, again):
        raise ModelError(
            f"{name}: gives other logits for the same image and the same seeds: it keeps a state "
            "from pass to pass, or draws from a generator of its own. Let it draw from torch's"
        )
    others = other_images(image)
    alone = drawn_logits(module, image, image.repeat(len(others), 1, 1, 1))
    among = drawn_logits(module, image, others)
    error = ((alone.var(0) + among.var(0)) / COMPANY_DRAWS).sqrt()
    rounding = REPEAT_RELATIVE * float(alone.abs().max())
    if ((alone.mean(0) - among.mean(0)).abs() > LARGEST_Z * error + rounding).any():
        raise company_error(name)


def drawn_logits(module: nn.Module, image: Tensor, others: Tensor) -> Tensor:
    """COMPANY_DRAWS draws of an image's logits in the company of others: (draws, K)."""
    batch = torch.cat([image, others])
    with torch.no_grad():
        return torch.stack([module(batch)[0] for _ in range(COMPANY_DRAWS)])
