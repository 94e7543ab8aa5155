"""A character-level decoder in the style of Llama."""
