"""LeNet-5 with its trainable subsampling, on pictures of four digits."""
