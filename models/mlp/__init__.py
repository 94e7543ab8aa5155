"""A multilayer perceptron on handwritten digits."""
