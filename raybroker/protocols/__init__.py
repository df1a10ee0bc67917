"""Honest protocols for any table of labelled alerts: `raybroker evaluate`."""
