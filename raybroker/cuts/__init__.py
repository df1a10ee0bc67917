"""Keep or drop, cheap and early."""
