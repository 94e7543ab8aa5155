"""A variational autoencoder in Flax NNX (Kingma, Welling, 2013, as in `models.vae.reference`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx


class Tanh(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.tanh(x)


class Sigmoid(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.sigmoid(x)


class Encoder(nnx.Module):
    """Images (N, 48) -> mean and log-variance of the posterior, (N, 5) each."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(48, 30, rngs=rngs)
        self.tanh = Tanh()
        self.mean = nnx.Linear(30, 5, rngs=rngs)
        self.logvar = nnx.Linear(30, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = self.tanh(self.hidden(x))  # (N, 30)
        return self.mean(h), self.logvar(h)


class Sample(nnx.Module):
    """z = mean + σ · noise with σ = exp(logvar / 2)."""

    def __call__(self, mean: jax.Array, logvar: jax.Array, noise: jax.Array) -> jax.Array:
        return mean + jnp.exp(logvar / 2) * noise


class Decoder(nnx.Module):
    """Codes (N, 5) -> images (N, 48) in (0, 1)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(5, 26, rngs=rngs)
        self.tanh = Tanh()
        self.pixels = nnx.Linear(26, 48, rngs=rngs)
        self.sigmoid = Sigmoid()

    def __call__(self, z: jax.Array) -> jax.Array:
        return self.sigmoid(self.pixels(self.tanh(self.hidden(z))))


class VAE(nnx.Module):
    """Images (N, 48) and noise (N, 5) -> reconstruction (N, 48), mean and log-variance (N, 5)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(rngs)
        self.sample = Sample()
        self.decoder = Decoder(rngs)

    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean, logvar = self.encoder(x)
        return self.decoder(self.sample(mean, logvar, noise)), mean, logvar


def build() -> VAE:
    """An untrained model."""
    return VAE(nnx.Rngs(0))
