"""A variational autoencoder in Keras 3 (Kingma, Welling, 2013, as in `models.vae.reference`)."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops


class Encoder(layers.Layer):
    """Images (N, 48) -> mean and log-variance of the posterior, (N, 5) each."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = layers.Dense(30, name="hidden")
        self.tanh = layers.Activation("tanh", name="tanh")
        self.mean = layers.Dense(5, name="mean")
        self.logvar = layers.Dense(5, name="logvar")

    def call(self, x: Any) -> Any:
        h = self.tanh(self.hidden(x))  # (N, 30)
        return self.mean(h), self.logvar(h)


class Sample(layers.Layer):
    """z = mean + σ · noise with σ = exp(logvar / 2)."""

    def call(self, mean: Any, logvar: Any, noise: Any) -> Any:
        return mean + ops.exp(logvar / 2) * noise


class Decoder(layers.Layer):
    """Codes (N, 5) -> images (N, 48) in (0, 1)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden = layers.Dense(26, name="hidden")
        self.tanh = layers.Activation("tanh", name="tanh")
        self.pixels = layers.Dense(48, name="pixels")
        self.sigmoid = layers.Activation("sigmoid", name="sigmoid")

    def call(self, z: Any) -> Any:
        return self.sigmoid(self.pixels(self.tanh(self.hidden(z))))


class VAE(keras.Model):
    """Images (N, 48) and noise (N, 5) -> reconstruction (N, 48), mean and log-variance (N, 5)."""

    def __init__(self) -> None:
        super().__init__(name="vae")
        self.encoder = Encoder(name="encoder")
        self.sample = Sample(name="sample")
        self.decoder = Decoder(name="decoder")

    def call(self, x: Any, noise: Any) -> Any:
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample(mean, logvar, noise)), mean, logvar


def build() -> VAE:
    """An untrained model with all of its variables."""
    model = VAE()
    model(ops.zeros((1, 48)), ops.zeros((1, 5)))
    return model
