"""Numbers from the light curve."""
