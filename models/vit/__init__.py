"""A small vision transformer: pictures as sequences of patches."""
