"""What trials may see, and how configurations are scored."""
