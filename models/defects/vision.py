"""Defects of the vision models: LeNet, MobileNet, U-Net, vision transformer, DCGAN and VAE."""

from models.defects import vision_jax, vision_keras, vision_numpy, vision_numpy_more
from models.defects.base import Defect

VISION_DEFECTS: tuple[Defect, ...] = (
    *vision_numpy.DEFECTS,
    *vision_numpy_more.DEFECTS,
    *vision_keras.DEFECTS,
    *vision_jax.DEFECTS,
)
