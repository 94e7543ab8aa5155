"""Pictures of four handwritten digits with a gap between them: taller than wide, both sides odd."""

from __future__ import annotations

import numpy as np

from models.data import digit_images

HEIGHT, WIDTH = 8 + 1 + 8, 6 + 1 + 6
CORNERS = ((0, 0), (0, 7), (9, 0), (9, 7))  # the first row and column of each digit


def digit_mosaics(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """``n`` pictures drawn by ``seed``: (n, 1, 17, 13) float32 in [0, 1]; their labels (n, 4) int64
    are of the digits at the top left, top right, bottom left and bottom right.
    """
    images, labels = digit_images(seed, 4 * n)
    mosaics = np.zeros((n, 1, HEIGHT, WIDTH), np.float32)
    for k, (top, left) in enumerate(CORNERS):
        mosaics[:, :, top : top + 8, left : left + 6] = images[k::4]
    return mosaics, labels.reshape(n, 4)


def ink_classes(mosaics: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each pixel shows, (n, 17, 13) int64: 0 paper, 1 an even digit's ink, 2 an odd one's."""
    classes = np.zeros((len(mosaics), HEIGHT, WIDTH), np.int64)
    for k, (top, left) in enumerate(CORNERS):
        parity = 1 + labels[:, k, None, None] % 2  # (n, 1, 1)
        classes[:, top : top + 8, left : left + 6] = parity
    return np.where(mosaics[:, 0] > 0.5, classes, 0)
