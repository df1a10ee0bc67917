"""Models that learn from labels, and what to ask next."""
