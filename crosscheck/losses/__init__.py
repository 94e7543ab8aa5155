"""The losses of a training step: `crosscheck.check(..., loss=, targets=)`.

    loss="cross_entropy(label_smoothing=0.1)", targets="int64[8] 0..10"
    loss={"output": "cross_entropy", "output:1": "0.5 * mse"}, targets={"output": ..., ...}
    loss=crosscheck.losses.Own(reference=torch_loss, candidate=numpy_loss)

Each named loss has one definition (`definitions`); each side computes it with its framework's own
(`crosscheck.adapters`: ``torch.losses`` and so on).
"""

from crosscheck.losses.spec import NAMES, Loss, Own, parse

__all__ = ["NAMES", "Loss", "Own", "parse"]
