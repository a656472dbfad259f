"""What makes one machine hold a whole federation."""
