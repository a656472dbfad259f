"""What a user says of a run, and how it becomes objects."""
