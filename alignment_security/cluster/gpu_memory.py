"""GPU memory that a job requests: of the weights, and of what autograd keeps for a batch."""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import nn

from alignment_security.models.forward import FIRST_CUDA_BATCH
from alignment_security.models.heads import Model

# GPU memory that a job requests: CUDA context, copies of the weights, margin * what autograd keeps
WEIGHT_COPIES = 2
MARGIN = 1.4  # APGD on Lite0 at batch 16 peaked at 1.32 times what autograd keeps, on a CPU
CONTEXT_MB = 1500  # of CUDA: a choice, not measured
LARGEST_REQUEST_MB = 40_000  # larger GPUs are few; a net that needs more gets smaller batches


def kept_for_backward(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Bytes that autograd keeps for the input gradient of one image, measured in a forward pass.

    shape   (C, H, W) of the image
    Each storage counts once; weights and buffers do not count.
    """
    weights = {
        tensor.untyped_storage().data_ptr()
        for tensor in chain(module.parameters(), module.buffers())
    }
    kept: dict[int, int] = {}  # address of a storage -> bytes

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.rand(1, *shape).requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # a reference to the logits keeps the graph alive, so no address is used twice
        logits = module(x)
    del logits
    return sum(kept.values())


def gpu_memory_mb(weight_bytes: int, image_bytes: int) -> int:
    """gpus_minimum_memory of a job, in MB of 10^6 bytes: enough for a batch of FIRST_CUDA_BATCH.

    weight_bytes   of the net
    image_bytes    that autograd keeps per image
    At most LARGEST_REQUEST_MB, unless a single image needs more.
    """

    def needed(batch: int) -> int:
        net_bytes = WEIGHT_COPIES * weight_bytes + MARGIN * batch * image_bytes
        return math.ceil(CONTEXT_MB + net_bytes / 1e6)

    return min(needed(FIRST_CUDA_BATCH), max(LARGEST_REQUEST_MB, needed(1)))


def requested_mb(model: Model) -> int:
    """GPU memory that a job with this model asks for, in MB."""
    tensors = model.module.state_dict().values()
    image_bytes = kept_for_backward(model.module, model.preprocessing["input_size"])
    return gpu_memory_mb(sum(tensor.nbytes for tensor in tensors), image_bytes)
