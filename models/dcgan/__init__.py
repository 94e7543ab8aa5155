"""A small DCGAN: a generator of digits and a discriminator that judges real and made ones."""
