"""What the server discovers among the items, and what clients do with it."""
