"""A run: started, resumed, watched, opened again."""
