"""A small U-Net that tells paper, even digits and odd digits apart."""
