"""A package looked into without a device: simulate, diff, sensitivity."""
