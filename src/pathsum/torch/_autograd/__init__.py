"""Station 5, the only package that says ``ctx``: what forward keeps, and which operator backward calls."""
