"""What crosses between clients and server, as bytes."""
