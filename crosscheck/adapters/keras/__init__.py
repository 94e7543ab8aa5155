"""Keras 3 on each of its backends; `adapter` chooses the one that is loaded."""
