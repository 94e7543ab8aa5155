"""Defects of the mixture of experts, the graph network and the actor-critic.

A defect without a source was made up. Two parameters of one shape that have changed places are no
weights that differ, if each side's own are kept: the values say which belong together, and the
container that uses them the wrong way round is the place to look.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from models.actor_critic.scratch_net import ActorCritic
from models.defects.base import Defect, alter, change
from models.scratch import Array, GraphConv, LogSoftmax, MixtureOfExperts, Router


def not_normalised(self: Router, x: Array) -> Array:
    Router.forward(self, x)
    return self._chosen


def total_a_constant(self: Router, dy: Array) -> Array:
    d = (self._chosen > 0) * dy / self._total
    return self.logits.backward(self.softmax.backward(d))


def router_left_out(self: MixtureOfExperts, dy: Array) -> Array:
    return sum(
        self.experts[i].backward(self._gates[..., i, None] * dy)
        for i in reversed(range(len(self.experts)))
    )


def experts_swapped(moe: MixtureOfExperts) -> None:
    for name in ("gate", "up", "down"):
        one, other = (getattr(moe.experts[i], name).params for i in (1, 3))
        one["weight"], other["weight"] = other["weight"], one["weight"]


def keras_sigmoid(self: Any, x: Any, mask: Any = None) -> Any:
    from keras import ops

    return ops.sigmoid(x)


def not_divided(self: Any, chosen: Any) -> Any:
    return chosen


def keras_gates_detached(self: Any, chosen: Any) -> Any:
    from keras import ops

    return ops.stop_gradient(type(self).__base__.normalised(self, chosen))


def keras_silu_twice(self: Any, x: Any) -> Any:
    return self.down(self.silu(self.gate(x)) * self.silu(self.up(x)))


def jax_total_a_constant(self: Any, chosen: Any) -> Any:
    import jax

    return chosen / jax.lax.stop_gradient(chosen.sum(axis=-1, keepdims=True))


def jax_gates_shifted(self: Any, x: Any) -> Any:
    import jax.numpy as jnp

    gates = jnp.roll(self.router(x), 1, axis=-1)
    made = jnp.stack([expert(x) for expert in self.experts], axis=-1)
    return (made * gates[:, :, None, :]).sum(axis=-1)


def propagation_left_out(self: GraphConv, x: Array, adjacency: Array) -> Array:
    GraphConv.forward(self, x, adjacency)
    return self._mapped + self.params["bias"]


def self_loops_left_out(self: GraphConv, x: Array, adjacency: Array) -> Array:
    return GraphConv.forward(self, x, adjacency - np.diag(np.diag(adjacency)))


def propagation_left_out_backward(self: GraphConv, dy: Array) -> tuple[Array, Array]:
    dx, dadjacency = GraphConv.backward(self, dy)
    return dy @ self.params["weight"].T, dadjacency


def keras_bias_before_propagation(self: Any, x: Any, adjacency: Any) -> Any:
    from keras import ops

    return ops.matmul(adjacency, ops.matmul(x, self.kernel) + self.bias)


def keras_normalised_by_row(self: Any, x: Any, adjacency: Any) -> Any:
    from keras import ops

    by_row = adjacency / ops.sum(adjacency, axis=1, keepdims=True)
    return type(self).__base__.call(self, x, by_row)


def jax_propagated_twice(self: Any, x: Any, adjacency: Any) -> Any:
    return type(self).__base__.__call__(self, adjacency @ x, adjacency)


def jax_adjacency_detached(self: Any, x: Any, adjacency: Any) -> Any:
    import jax

    return type(self).__base__.__call__(self, x, jax.lax.stop_gradient(adjacency))


def value_left_out(self: ActorCritic, dpolicy: Array, dvalue: Array) -> Array:
    dshared = self.policy.backward(self.log_softmax.backward(dpolicy))
    self.value.backward(dvalue[:, None])
    return self.trunk.backward(dshared)


def log_softmax_as_identity(self: LogSoftmax, dy: Array) -> Array:
    return dy


def keras_probabilities(self: Any, x: Any) -> Any:
    from keras import ops

    return ops.softmax(x)


def keras_trunk_detached(self: Any, x: Any) -> Any:
    from keras import ops

    shared = self.trunk(x)
    value = self.value(ops.stop_gradient(shared))[:, 0]
    return self.log_softmax(self.policy(shared)), value


def jax_relu(self: Any, x: Any) -> Any:
    from flax import nnx

    return nnx.relu(x)


def calls(layer: Any, call: Any) -> None:
    """As `change`, for a Keras layer that has no path of names."""
    layer.__class__ = type(type(layer).__name__, (type(layer),), {"call": call})


moe = functools.partial(Defect, family="moe")
gcn = functools.partial(Defect, family="gcn")
actor_critic = functools.partial(Defect, family="actor_critic")

DEFECTS: tuple[Defect, ...] = (
    moe(
        name="moe-numpy-gates-not-normalised",
        candidate="numpy",
        mistake="the two gates are not divided by their sum",
        source="",
        phase="forward",
        site="moe.router",
        inject=change("moe.router", forward=not_normalised),
    ),
    moe(
        name="moe-numpy-top-one",
        candidate="numpy",
        mistake="one expert a token for two",
        source="",
        phase="forward",
        site="moe.router",
        inject=change("moe.router", top=1),
    ),
    moe(
        name="moe-numpy-router-total-backward",
        candidate="numpy",
        mistake="backward takes the sum of the gates for a constant",
        source="",
        phase="backward",
        site="moe.router",
        inject=change("moe.router", backward=total_a_constant),
    ),
    moe(
        name="moe-numpy-router-left-out-backward",
        candidate="numpy",
        mistake="no gradient passes through the router",
        source="paiml/aprender#3034",
        phase="backward",
        site="moe",
        inject=change("moe", backward=router_left_out),
    ),
    moe(
        name="moe-numpy-experts-swapped",
        candidate="numpy",
        mistake="two experts loaded into each other's place",
        source="",
        phase="forward",
        site="moe",
        inject=alter("moe", experts_swapped),
        keep_weights=True,
    ),
    moe(
        name="moe-keras-sigmoid-router",
        candidate="keras",
        mistake="the router's scores by a sigmoid for a softmax",
        source="",
        phase="forward",
        site="moe/router/softmax",
        inject=change("moe/router/softmax", call=keras_sigmoid),
    ),
    moe(
        name="moe-keras-gates-not-normalised",
        candidate="keras",
        mistake="the two gates are not divided by their sum",
        source="",
        phase="forward",
        site="moe/router",
        inject=change("moe/router", normalised=not_divided),
    ),
    moe(
        name="moe-keras-top-three",
        candidate="keras",
        mistake="three experts a token for two",
        source="",
        phase="forward",
        site="moe/router",
        inject=change("moe/router", top=3),
    ),
    moe(
        name="moe-keras-gates-detached",
        candidate="keras",
        mistake="no gradient passes through the gates",
        source="paiml/aprender#3034",
        phase="backward",
        site="moe/router",
        inject=change("moe/router", normalised=keras_gates_detached),
    ),
    moe(
        name="moe-keras-silu-twice",
        candidate="keras",
        mistake="SiLU on both branches of an expert",
        source="",
        phase="forward",
        site="moe/experts_2/silu#2",
        inject=lambda model: calls(model.moe.experts[2], keras_silu_twice),
    ),
    moe(
        name="moe-jax-softmax-axis",
        candidate="jax",
        mistake="softmax over the positions for the experts",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="moe.router.softmax",
        inject=change("moe.router.softmax", axis=-2),
    ),
    moe(
        name="moe-jax-gates-not-normalised",
        candidate="jax",
        mistake="the two gates are not divided by their sum",
        source="",
        phase="forward",
        site="moe.router",
        inject=change("moe.router", normalised=not_divided),
    ),
    moe(
        name="moe-jax-router-total-detached",
        candidate="jax",
        mistake="no gradient passes through the sum of the gates",
        source="paiml/aprender#3034",
        phase="backward",
        site="moe.router",
        inject=change("moe.router", normalised=jax_total_a_constant),
    ),
    moe(
        name="moe-jax-gates-shifted",
        candidate="jax",
        mistake="each expert is weighed with its neighbour's gate",
        source="",
        phase="forward",
        site="moe",
        inject=change("moe", __call__=jax_gates_shifted),
    ),
    gcn(
        name="gcn-numpy-propagation-left-out",
        candidate="numpy",
        mistake="a layer without the step to the neighbours",
        source="",
        phase="forward",
        site="conv1",
        inject=change("conv1", forward=propagation_left_out),
    ),
    gcn(
        name="gcn-numpy-self-loops-left-out",
        candidate="numpy",
        mistake="nodes do not count among their own neighbours",
        source="",
        phase="forward",
        site="conv2",
        inject=change("conv2", forward=self_loops_left_out),
    ),
    gcn(
        name="gcn-numpy-propagation-backward",
        candidate="numpy",
        mistake="backward to the features forgets the adjacency",
        source="",
        phase="backward",
        site="conv2",
        inject=change("conv2", backward=propagation_left_out_backward),
    ),
    gcn(
        name="gcn-keras-bias-before-propagation",
        candidate="keras",
        mistake="the bias is added before the step to the neighbours",
        source="",
        phase="forward",
        site="conv1",
        inject=change("conv1", call=keras_bias_before_propagation),
    ),
    gcn(
        name="gcn-keras-normalised-by-row",
        candidate="keras",
        mistake="the adjacency is normalised once more, by rows",
        source="",
        phase="forward",
        site="conv2",
        inject=change("conv2", call=keras_normalised_by_row),
    ),
    gcn(
        name="gcn-jax-propagated-twice",
        candidate="jax",
        mistake="two steps to the neighbours for one",
        source="",
        phase="forward",
        site="conv1",
        inject=change("conv1", __call__=jax_propagated_twice),
    ),
    gcn(
        name="gcn-jax-adjacency-detached",
        candidate="jax",
        mistake="no gradient reaches the adjacency",
        source="paiml/aprender#3034",
        phase="backward",
        site="conv2",
        inject=change("conv2", __call__=jax_adjacency_detached),
    ),
    actor_critic(
        name="actor-critic-numpy-value-detached",
        candidate="numpy",
        mistake="the value's gradient does not reach the trunk",
        source="paiml/aprender#3034",
        phase="backward",
        site="output",
        inject=change("", backward=value_left_out),
    ),
    actor_critic(
        name="actor-critic-numpy-log-softmax-backward",
        candidate="numpy",
        mistake="log-softmax's backward lacks the sum term",
        source="HomericIntelligence/Odyssey#2134",
        phase="backward",
        site="log_softmax",
        inject=change("log_softmax", backward=log_softmax_as_identity),
    ),
    actor_critic(
        name="actor-critic-keras-probabilities",
        candidate="keras",
        mistake="probabilities for their logarithms",
        source="",
        phase="forward",
        site="log_softmax",
        inject=change("log_softmax", call=keras_probabilities),
    ),
    actor_critic(
        name="actor-critic-keras-value-detached",
        candidate="keras",
        mistake="the value's gradient does not reach the trunk",
        source="paiml/aprender#3034",
        phase="backward",
        site="output",
        inject=lambda model: calls(model, keras_trunk_detached),
    ),
    actor_critic(
        name="actor-critic-jax-softmax-axis",
        candidate="jax",
        mistake="log-softmax over the batch for the actions",
        source="labmlai/annotated_deep_learning_paper_implementations#146",
        phase="forward",
        site="log_softmax",
        inject=change("log_softmax", axis=0),
    ),
    actor_critic(
        name="actor-critic-jax-relu-for-tanh",
        candidate="jax",
        mistake="ReLU for tanh",
        source="",
        phase="forward",
        site="trunk.tanh2",
        inject=change("trunk.tanh2", __call__=jax_relu),
    ),
)
