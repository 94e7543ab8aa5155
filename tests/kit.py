"""What tests of the edges (command line, pytest plugin) write into a user's folder."""

NET = '''
import numpy as np


class Net:
    """A linear layer and a scaled one, by hand."""

    def __init__(self, factor=1.0):
        self.W = np.linspace(-1, 1, 18).reshape(6, 3).astype("float32")
        self.b = np.ones(3, "float32")
        self.factor = np.float32(factor)

    def forward(self, x):
        self.x = x
        return (x @ self.W + self.b) * self.factor

    def backward(self, d):
        d = d * self.factor
        self.dW, self.db = self.x.T @ d, d.sum(0)
        return d @ self.W.T
'''
"""A file ``net.py``."""
