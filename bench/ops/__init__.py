"""One benchmark per operator."""
