"""What runs: worker, trainer, and Ray around them."""
