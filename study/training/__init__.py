"""Train K configurations side by side as stacked tensors. No Ray in here."""
