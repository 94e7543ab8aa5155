"""A policy and a value from one trunk."""
