"""Small networks, each as a PyTorch reference, a NumPy net by hand, and ports to Keras and Flax."""
