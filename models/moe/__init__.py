"""Which character comes next? A mixture of experts."""
