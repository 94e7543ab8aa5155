"""Does one passage follow the other? A BERT-style encoder with padding."""
