"""The test split, scored once."""
