"""The kit's models in Flax NNX."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crosscheck.adapters.jax.adapter import JaxAdapter, find
from crosscheck.taps import tap

from .kit import Kit


class Act(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return nnx.relu(x)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.inner, self.act = dense(rngs)(5, 5), Act()

    def __call__(self, h: Any) -> Any:
        return h + self.act(self.inner(h))


class Layers(nnx.Module):
    """Named layers and a call that is given as a function of them."""

    def __init__(self, function: Any, **layers: Any) -> None:
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def __call__(self, x: Any) -> Any:
        return self.function(self, x)


class TwoInputs(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fl, self.fr = dense(rngs)(4, 3), dense(rngs)(4, 3)

    def __call__(self, left: Any, right: Any) -> Any:
        return self.fl(left) - self.fr(right)


class Boom(nnx.Module):
    def __call__(self, x: Any) -> Any:
        raise ValueError("boom")


@jax.custom_vjp
def _explodes(x: Any) -> Any:
    return x


def _boom(_: None, dy: Any) -> Any:
    raise ValueError("boom")


_explodes.defvjp(lambda x: (x, None), _boom)


class BackwardBoom(nnx.Module):
    def __call__(self, x: Any) -> Any:
        return _explodes(x)


def dense(rngs: nnx.Rngs) -> Any:
    bias = nnx.initializers.normal(0.5)
    return lambda i, o: nnx.Linear(i, o, rngs=rngs, bias_init=bias)


class JaxKit(Kit):
    def build(self, name: str) -> nnx.Module:
        rngs = nnx.Rngs(0)
        fc = dense(rngs)
        model: nnx.Module = {
            "mlp": lambda: Layers(
                lambda m, x: m.fc2(m.block(m.fc1(x))), fc1=fc(4, 5), block=Block(rngs), fc2=fc(5, 3)
            ),
            "shared": lambda: Layers(
                lambda m, x: m.head(m.cell(m.cell(x))), cell=fc(4, 4), head=fc(4, 3)
            ),
            "fan_out": lambda: Layers(
                lambda m, x: (lambda h: m.a(h) + m.b(h) + m.c(h))(m.fc(x)),
                fc=fc(4, 5),
                a=fc(5, 3),
                b=fc(5, 3),
                c=fc(5, 3),
            ),
            "structured": lambda: Layers(
                lambda m, x: (m.head(x), {"hidden": m.fc(x)}), head=fc(4, 3), fc=fc(4, 5)
            ),
            "returning": lambda: Layers(
                lambda m, x: (lambda h: (m.head(h), h))(m.fc(x)), fc=fc(4, 5), head=fc(5, 3)
            ),
            "two_inputs": lambda: TwoInputs(rngs),
            "embedding": lambda: Layers(
                lambda m, ids: m.head(m.table(ids)),
                table=nnx.Embed(7, 4, rngs=rngs),
                head=fc(4, 3),
            ),
            "cut": lambda: Layers(
                lambda m, x: m.main(x) + jax.lax.stop_gradient(m.side(x)),
                main=fc(4, 3),
                side=fc(4, 3),
            ),
            "norm": lambda: Layers(
                lambda m, x: m.bn(m.fc(x)),
                fc=fc(4, 3),
                bn=nnx.BatchNorm(3, momentum=0.9, epsilon=1e-5, rngs=rngs),
            ),
            "dropout": lambda: Layers(
                lambda m, x: m.drop(m.fc(x)), fc=fc(4, 3), drop=nnx.Dropout(0.5, rngs=rngs)
            ),
            "raising": lambda: Layers(lambda m, x: m.boom(m.fc(x)), fc=fc(4, 3), boom=Boom()),
            "raising_backward": lambda: Layers(
                lambda m, x: m.boom(m.fc(x)), fc=fc(4, 3), boom=BackwardBoom()
            ),
            "tapped": lambda: Layers(
                lambda m, x: m.head(tap("mid", m.attn(x))),
                attn=Layers(lambda m, x: tap("scores", m.fc(x)), fc=fc(4, 4)),
                head=fc(4, 3),
            ),
        }[name]()
        return model

    def adapt(self, model: Any) -> JaxAdapter:
        adapter = find(model)
        assert adapter is not None
        return adapter

    def bare(
        self, model: Any, inputs: Mapping[str, np.ndarray], dys: list[np.ndarray]
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        fed = [jnp.asarray(a) for a in inputs.values()]

        def function(params: Any, *tensors: Any) -> list[Any]:
            copy = nnx.merge(graph, params, rest)
            copy.eval()
            return jax.tree.leaves(copy(*tensors))

        outputs, pullback = jax.vjp(function, params, *fed)
        found = pullback([jnp.asarray(d) for d in dys])[0]
        gradients = {
            ".".join(map(str, path)): np.asarray(variable.get_value())
            for path, variable in nnx.to_flat_state(found)
        }
        return [np.asarray(o) for o in outputs], gradients

    def state(self, model: Any) -> dict[str, Any]:
        graph, state = nnx.split(model)
        found = nnx.to_flat_state(state)
        arrays = {path: variable.get_value() for path, variable in found}
        keys = {p for p, a in arrays.items() if jnp.issubdtype(a.dtype, jax.dtypes.prng_key)}
        return {
            "values": {
                path: np.asarray(jax.random.key_data(a) if path in keys else a)
                for path, a in arrays.items()
            },
            "places": [id(a) for a in arrays.values()],
            "graph": hash(graph),
            "calls": [type(m).__call__ for _, m in nnx.iter_modules(model) if callable(m)],
            "x64": jax.config.jax_enable_x64,
            "precision": jax.config.jax_default_matmul_precision,
            "device": jax.config.jax_default_device,
            "numpy": np.random.get_state()[1].copy(),  # type: ignore[index, union-attr]
            "python": random.getstate(),
        }
