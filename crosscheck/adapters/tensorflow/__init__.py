"""TensorFlow modules, functions and SavedModels; `adapter` is the way in."""
