"""What kind of character comes next? A bidirectional GRU."""
