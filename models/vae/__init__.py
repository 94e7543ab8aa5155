"""A variational autoencoder of handwritten digits, its noise given from outside."""
