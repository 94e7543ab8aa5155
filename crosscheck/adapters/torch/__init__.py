"""PyTorch modules, programs and graphs; `adapter` is the way in."""
