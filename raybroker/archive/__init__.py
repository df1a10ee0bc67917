"""Everything that was ever received, kept and found again."""
