"""A residual convolutional network on handwritten digits, taller than wide."""
