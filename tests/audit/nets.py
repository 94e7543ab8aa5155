"""One small net in Keras and in Flax, with a place for every mistake, and in NumPy by hand.

`mistaken` is what the two share: the forward pass, in which ``change`` names one mistake. PyTorch's
nets are in `kit` and `faults`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from models.scratch import BatchNorm2d, Layer, Linear, ReLU, Tanh

from .kit import CLASSES, FEATURES, X

RUNNING = "running statistics"
SMOOTH = ("blind", "softmax of one")  # where a ReLU would be off for all examples alike
FUSE: int | None = None  # so many calls until the model raises
NOISE = np.random.default_rng(0)  # that no seed reaches


def burn() -> None:
    """Raise where the fuse has burnt down."""
    global FUSE
    if FUSE is not None:
        FUSE -= 1
        if FUSE < 0:
            raise RuntimeError("the fuse has burnt down")


def mistaken(net: Any, ops: Any, x: Any, train: bool) -> Any:
    """first, norm, relu, drop, head, with the mistake ``net.change``.

    Args:
        ops: array functions under NumPy's names, and ``softmax`` and ``stop_gradient``.
    """
    change = net.change
    hidden = net.first(_before(change, ops, x, train))
    if change == "unused":
        net.spare(hidden)
    if change == "future":  # every position sees the mean over all of them
        hidden = hidden + ops.mean(hidden, axis=1, keepdims=True)
    hidden = hidden if change == "blind" else net.norm(hidden)
    hidden = ops.tanh(hidden) if change in SMOOTH else net.relu(hidden)
    hidden = net.drop(hidden)
    burn()
    if change == "vanishing":
        hidden = 1e-7 * hidden
    if change == "wrong gradient":
        return net.factored(hidden, lambda w: w + 0.001 * (w - ops.stop_gradient(w)))
    made = net.head(hidden)
    if change == "limited":
        return 0.01 * ops.tanh(made)
    return ops.squeeze(made) if change == "squeezed" else made


def _before(change: str, ops: Any, x: Any, train: bool) -> Any:
    if change == "blind":
        return 1e-4 * x
    if change == "softmax of one":
        return ops.softmax(x[..., None], -1)[..., 0]
    if change == "unscaled":
        return (x - 50) / 100
    if change == "mixing":
        return x - ops.mean(x, axis=0, keepdims=True)
    if change == "root":  # what comes back is 0 times infinity
        return x + ops.sqrt(0 * ops.abs(x))
    if change == "own noise" and train:
        return x + 1e-3 * ops.asarray(NOISE.standard_normal(x.shape).astype("float32"))
    return x


def classes(change: str) -> int:
    return 1 if change in ("single logit", "squeezed") else CLASSES


class _Ops:
    """A module's array functions, with others that it has under another name."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def keras_net(change: str = "", x: np.ndarray = X) -> Any:
    """A Keras model, built for inputs like ``x``; (..., 6) -> (..., 3)."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    ops = _Ops(keras.ops, softmax=keras.ops.softmax, stop_gradient=keras.ops.stop_gradient)
    ops.asarray = keras.ops.convert_to_tensor

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.change = change
            self.first = layers.Dense(8, name="first")
            self.norm = layers.BatchNormalization(name="norm")
            self.relu = layers.ReLU(name="relu")
            self.drop = layers.Dropout(0.2, name="drop", seed=3)
            self.head = layers.Dense(classes(change), name="head")
            if change == "unused":
                self.spare = layers.Dense(2, name="spare")

        def call(self, x: Any, training: bool = False) -> Any:
            view = _View(self, training, change)
            return mistaken(view, ops, x, bool(training))

    model = Model()
    model(x)
    return model


class _View:
    """The layers of a Keras model in the mode of one call."""

    def __init__(self, model: Any, training: bool, change: str) -> None:
        self.change, self._model = change, model
        modes = {
            "norm": training and change != RUNNING,
            "drop": {"always drops": True, "never drops": False}.get(change, training),
        }
        for name in ("first", "norm", "relu", "drop", "head", "spare"):
            layer = getattr(model, name, None)
            given = {"training": modes[name]} if name in modes else {}
            setattr(self, name, lambda x, layer=layer, given=given: layer(x, **given))

    def factored(self, hidden: Any, factor: Any) -> Any:
        import keras

        head = self._model.head
        if not head.built:
            head.build(hidden.shape)
        weight = keras.ops.convert_to_tensor(head.kernel)
        return keras.ops.matmul(hidden, factor(weight)) + head.bias


def flax_net(change: str = "", x: np.ndarray = X) -> Any:
    """A Flax NNX module, (..., 6) -> (..., 3)."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    ops = _Ops(jnp, softmax=jax.nn.softmax, stop_gradient=jax.lax.stop_gradient)

    class Relu(nnx.Module):
        def __call__(self, x: Any) -> Any:
            return jnp.maximum(x, 0)

    class Model(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.change = change
            self.first = nnx.Linear(FEATURES, 8, rngs=rngs)
            if change != "blind":
                self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.relu = Relu()
            self.drop = nnx.Dropout(0.2, rngs=rngs)
            self.head = nnx.Linear(8, classes(change), rngs=rngs)
            if change == "unused":
                self.spare = nnx.Linear(8, 2, rngs=rngs)

        def factored(self, hidden: Any, factor: Any) -> Any:
            return hidden @ factor(self.head.kernel[...]) + self.head.bias[...]

        def __call__(self, x: Any) -> Any:
            train = not self.drop.deterministic
            self.drop.deterministic = {"always drops": False, "never drops": True}.get(
                change, not train
            )
            if change != "blind":
                self.norm.use_running_average = change == RUNNING or not train
            return mistaken(self, ops, x, train)

    return Model(nnx.Rngs(0))


# -- NumPy -----------------------------------------------------------------------------------------


class Dropout(Layer):
    """Inverted dropout at a rate of 0.2, in the mode that ``fixed`` says, if it says one."""

    def __init__(self, *, fixed: bool | None = None) -> None:
        super().__init__()
        self.p, self._fixed = 0.2, fixed

    def forward(self, x: Any) -> Any:
        on = self.training if self._fixed is None else self._fixed
        kept = np.random.random(x.shape) >= self.p  # noqa: NPY002  (a generator that is seeded)
        self._kept = (kept / (1 - self.p)).astype(x.dtype) if on else np.ones_like(x)
        return x * self._kept

    def backward(self, dy: Any) -> Any:
        return dy * self._kept


class BatchNorm(BatchNorm2d):
    """Over the last axis of (..., C); ``running`` alone where ``fixed``."""

    def __init__(self, channels: int, *, fixed: bool = False) -> None:
        super().__init__(channels)
        self._fixed = fixed

    def forward(self, x: Any) -> Any:
        self.training = self.training and not self._fixed
        flat = x.reshape(-1, x.shape[-1])
        return super().forward(flat[:, :, None, None]).reshape(x.shape)

    def backward(self, dy: Any) -> Any:
        flat = dy.reshape(-1, dy.shape[-1])
        return super().backward(flat[:, :, None, None]).reshape(dy.shape)


class SlightlyWrong(Linear):
    def accumulate(self, name: str, gradient: Any) -> None:
        super().accumulate(name, gradient * (1.001 if name == "weight" else 1))


class Mean(Layer):
    """Adds the mean over an axis, or takes it away."""

    def __init__(self, axis: int, sign: int) -> None:
        super().__init__()
        self._axis, self._sign = axis, sign

    def forward(self, x: Any) -> Any:
        return x + self._sign * x.mean(axis=self._axis, keepdims=True)

    backward = forward  # a symmetric matrix


class Noise(Layer):
    def forward(self, x: Any) -> Any:
        noise = 1e-3 * NOISE.standard_normal(x.shape).astype(x.dtype)
        return x + noise if self.training else x

    def backward(self, dy: Any) -> Any:
        return dy


class Elementwise(Layer):
    """A function of every element, and its derivative by the element and the result."""

    def __init__(self, function: Any, derivative: Any) -> None:
        super().__init__()
        self._function, self._derivative = function, derivative

    def forward(self, x: Any) -> Any:
        self._x, self._y = x, self._function(x)
        return self._y

    def backward(self, dy: Any) -> Any:
        return (dy * self._derivative(self._x, self._y)).astype(dy.dtype)


BEFORE = {
    "blind": Elementwise(lambda x: 1e-4 * x, lambda x, y: 1e-4),
    "softmax of one": Elementwise(np.ones_like, lambda x, y: 0.0),
    "unscaled": Elementwise(lambda x: (x - 50) / 100, lambda x, y: 0.01),
    "mixing": Mean(0, -1),
    "root": Elementwise(np.copy, lambda x, y: np.nan),
    "own noise": Noise(),
}


class ByHand(Layer):
    """The same net with its backward pass written out."""

    def __init__(self, change: str = "", x: np.ndarray = X) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        limited = Elementwise(lambda x: 0.01 * np.tanh(x), lambda x, y: 0.01 - 100 * y**2)
        self.before = BEFORE.get(change)
        self.first = Linear(FEATURES, 8, rng)
        self.future = Mean(1, 1) if change == "future" else None
        self.norm = None if change == "blind" else BatchNorm(8, fixed=change == RUNNING)
        self.relu = Tanh() if change in SMOOTH else ReLU()
        self.drop = Dropout(fixed={"always drops": True, "never drops": False}.get(change))
        tiny = Elementwise(lambda x: 1e-7 * x, lambda x, y: 1e-7)
        self.tiny = tiny if change == "vanishing" else None
        head = SlightlyWrong if change == "wrong gradient" else Linear
        self.head = head(8, classes(change), rng)
        self.limited = limited if change == "limited" else None
        self._order = [layer for _, layer in self.children()]
        if change == "unused":
            self.spare = Linear(8, 2, rng)
        self._squeezed = change == "squeezed"

    def forward(self, x: Any) -> Any:
        for layer in self._order:
            x = layer.forward(x)
        self._shape = x.shape
        return x.squeeze() if self._squeezed else x

    def backward(self, dy: Any) -> Any:
        dy = dy.reshape(self._shape)
        for layer in reversed(self._order):
            dy = layer.backward(dy)
        return dy


NETS = {"keras": keras_net, "jax": flax_net, "numpy": ByHand}
