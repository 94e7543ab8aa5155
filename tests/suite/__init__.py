"""`crosscheck suite`."""
