"""Which digit is it? A graph convolutional network over pictures and their neighbours."""
