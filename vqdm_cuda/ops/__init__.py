"""One file per operator: its definition, Python wrapper, fake kernel and gradient."""
