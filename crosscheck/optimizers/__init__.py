"""The optimizers of a training step: `crosscheck.check(..., optimizer=, steps=)`.

    optimizer="adamw(lr=1e-3, weight_decay=0.01, exclude='biases and norms')"
    optimizer=("sgd(lr=0.1, momentum=0.9)", keras.optimizers.SGD(0.1, momentum=0.9))

Each named optimizer has one definition (`rules`); each side computes it with its framework's own
(`crosscheck.adapters`: ``torch.optimizer`` and so on), NumPy, CuPy and ONNX sides with the
definition. An optimizer of your own is an object with ``step(params, grads)``, or a function of the
two: dicts {name: array} with the side's own names; it changes ``params`` in place or returns new
ones.
"""

from crosscheck.optimizers.definition import Definition
from crosscheck.optimizers.parse import parse
from crosscheck.optimizers.rules import Rule

__all__ = ["Definition", "Rule", "parse"]
