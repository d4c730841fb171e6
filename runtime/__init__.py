"""primelens."""
