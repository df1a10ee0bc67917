"""The HTTP endpoint and the labelling page."""
