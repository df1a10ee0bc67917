"""Packet bytes to and from the canonical batch. Only this folder knows one survey from another."""
