"""The multilayer perceptron in Keras 3."""

from __future__ import annotations

import keras


def build() -> keras.Sequential:
    """An untrained model."""
    return keras.Sequential(
        [
            keras.layers.Input((64,)),
            keras.layers.Dense(48, name="fc1"),
            keras.layers.LayerNormalization(epsilon=1e-5, name="norm"),
            keras.layers.LeakyReLU(negative_slope=0.01, name="act1"),  # Keras' default is 0.3
            keras.layers.Dense(32, name="fc2"),
            keras.layers.Activation("hard_swish", name="act2"),
            keras.layers.Dense(10, name="fc3"),
        ],
        name="mlp",
    )
