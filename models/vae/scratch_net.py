"""A variational autoencoder from scratch (Kingma, Welling, 2013, as in `models.vae.reference`)."""

from __future__ import annotations

import numpy as np

from models.scratch import Array, Layer, Linear, Sigmoid, Tanh, array_namespace


class Encoder(Layer):
    """Images (N, 48) -> mean and log-variance of the posterior, (N, 5) each."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.hidden = Linear(48, 30, rng)
        self.tanh = Tanh()
        self.mean = Linear(30, 5, rng)
        self.logvar = Linear(30, 5, rng)

    def forward(self, x: Array) -> tuple[Array, Array]:
        h = self.tanh.forward(self.hidden.forward(x))  # (N, 30)
        return self.mean.forward(h), self.logvar.forward(h)

    def backward(self, dmean: Array, dlogvar: Array) -> Array:
        dh = self.logvar.backward(dlogvar) + self.mean.backward(dmean)
        return self.hidden.backward(self.tanh.backward(dh))


class Sample(Layer):
    """z = mean + σ · noise with σ = exp(logvar / 2); hence dlogvar = dz · noise · σ / 2."""

    def forward(self, mean: Array, logvar: Array, noise: Array) -> Array:
        self._sigma, self._noise = array_namespace(logvar).exp(logvar / 2), noise
        return mean + self._sigma * noise

    def backward(self, dz: Array) -> tuple[Array, Array, Array]:
        return dz, dz * self._noise * self._sigma / 2, dz * self._sigma


class Decoder(Layer):
    """Codes (N, 5) -> images (N, 48) in (0, 1)."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.hidden = Linear(5, 26, rng)
        self.tanh = Tanh()
        self.pixels = Linear(26, 48, rng)
        self.sigmoid = Sigmoid()

    def forward(self, z: Array) -> Array:
        h = self.tanh.forward(self.hidden.forward(z))  # (N, 26)
        return self.sigmoid.forward(self.pixels.forward(h))

    def backward(self, dy: Array) -> Array:
        dh = self.pixels.backward(self.sigmoid.backward(dy))
        return self.hidden.backward(self.tanh.backward(dh))


class VAE(Layer):
    """Images (N, 48) and noise (N, 5) -> reconstruction (N, 48), mean and log-variance (N, 5)."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.encoder = Encoder(rng)
        self.sample = Sample()
        self.decoder = Decoder(rng)

    def forward(self, x: Array, noise: Array) -> tuple[Array, Array, Array]:
        mean, logvar = self.encoder.forward(x)
        return self.decoder.forward(self.sample.forward(mean, logvar, noise)), mean, logvar

    def backward(self, dy: Array, dmean: Array, dlogvar: Array) -> tuple[Array, Array]:
        through_mean, through_logvar, dnoise = self.sample.backward(self.decoder.backward(dy))
        dx = self.encoder.backward(dmean + through_mean, dlogvar + through_logvar)
        return dx, dnoise


def build() -> VAE:
    """An untrained net, in evaluation mode."""
    net = VAE(np.random.default_rng(0))
    net.eval()
    return net
