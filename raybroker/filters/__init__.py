"""What leaves, and to which topic."""
