"""Numbers from models."""
