"""Images in training: their order, and augmentation that moves a map with its photograph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment_security.images.loading import load_image_set
from alignment_security.images.map_files import with_map_files
from alignment_security.trainer.images import AugmentedImages, batch_indices, classes_without_map

# ---- order and augmentation ----------------------------------------------------------------------


def test_batch_indices_cover_each_epoch_for_any_number_of_processes():
    whole = list(batch_indices(23, 4, seed=7, start=0, stop=10))
    assert len(whole) == 10 and all(len(batch) == 4 for batch in whole)
    for epoch in (0, 1):
        seen = [i for batch in whole[5 * epoch : 5 * epoch + 5] for e, i in batch if e == epoch]
        assert len(seen) == len(set(seen)) == 20
    assert whole[:5] != whole[5:]
    assert list(batch_indices(23, 4, 7, 6, 10)) == whole[6:]
    halves = [list(batch_indices(23, 4, 7, 0, 10, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == whole


AUGMENTATION = {"scale": [0.3, 1.0], "hflip": 0.5, "color_jitter": 0.0, "auto_augment": None}


@pytest.mark.parametrize("augmentation", [AUGMENTATION, None], ids=["augmented", "as evaluated"])
def test_augmented_images_move_a_map_with_its_photograph(mapped, augmentation):
    images = with_map_files(load_image_set("mine", str(mapped[0]), 2), mapped[1])
    preprocessing = {
        "input_size": (3, 64, 64),
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    data = AugmentedImages([images], preprocessing, augmentation, 0, True)
    views = [[data[epoch, i] for i in range(8)] for epoch in range(3)]
    for position, x, _, drawn, known in sum(views, []):
        assert known and x.dtype == torch.uint8 and drawn.shape == (64, 64)
        assert np.corrcoef(x[0].flatten(), drawn.flatten())[0, 1] > 0.999, position
    again = AugmentedImages([images], preprocessing, augmentation, 0, True)[1, 3]
    assert torch.equal(again[1], views[1][3][1]) and torch.equal(again[3], views[1][3][3])
    assert torch.equal(views[0][3][1], views[1][3][1]) == (augmentation is None)


def test_augmented_images_leave_the_generators_unchanged(mapped):
    images = load_image_set("mine", str(mapped[0]), 2)
    preprocessing = {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    data = AugmentedImages([images], preprocessing, AUGMENTATION, 0, False)
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    _, _, _, drawn, known = data[0, 0]
    assert torch.equal(torch.rand(3), first) and not known and not drawn.any()


def test_augmented_images_join_two_lists(mapped, sample):
    """Images without maps, as ImageNet's, and images with maps, as ClickMe's."""
    mine = load_image_set("mine", str(mapped[0]), 2)
    preprocessing = {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    data = AugmentedImages([mine, sample.take([3, 4])], preprocessing, None, 0, True)
    rows = [data[0, i] for i in range(10)]
    assert [row[0] for row in rows] == list(range(10)) and data.ids == mine.ids + sample.ids[3:5]
    assert [row[4] for row in rows] == [False] * 8 + [True] * 2 and rows[8][2] == sample.labels[3]
    assert classes_without_map([mine, sample.take([3, 4])]) == [0, 1]
