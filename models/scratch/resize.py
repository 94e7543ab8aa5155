"""Images of another size by interpolation."""

from __future__ import annotations

from models.scratch.base import Array, Layer, array_namespace


class BilinearResize(Layer):
    """y = R_h x R_wᵀ: each pixel is a mean of its four nearest neighbours, nearer ones more.

    Pixel i of n has its centre at (i + ½)/n ("half-pixel centres"); beyond the outermost centres
    the border goes on unchanged. Images are (B, C, H, W) -> (B, C, *size).
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Array) -> Array:
        self._rows = self.interpolation(x, x.shape[2], self.size[0])  # (Ho, H)
        self._columns = self.interpolation(x, x.shape[3], self.size[1])  # (Wo, W)
        return self._rows @ x @ self._columns.T

    def backward(self, dy: Array) -> Array:
        return self._rows.T @ dy @ self._columns

    def interpolation(self, like: Array, old: int, new: int) -> Array:
        """R (new, old), whose rows sum to 1; in the dtype of ``like``."""
        xp = array_namespace(like)
        at = xp.clip(self.source(xp.arange(new), old, new), 0, old - 1)  # (new,)
        distance = abs(at[:, None] - xp.arange(old))  # (new, old)
        return xp.maximum(1 - distance, 0).astype(like.dtype)

    def source(self, i: Array, old: int, new: int) -> Array:
        """Where in the old image pixel ``i`` of the new one lies, in old pixels."""
        return (i + 0.5) * old / new - 0.5
