"""How well held-out items are ranked."""
