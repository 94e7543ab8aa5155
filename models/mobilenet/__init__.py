"""A small MobileNetV3 on handwritten digits: depthwise separable, with squeeze and excitation."""
