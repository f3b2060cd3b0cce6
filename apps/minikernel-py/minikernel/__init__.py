"""A small Jupyter kernel, built on microio. ``kernel.py`` says who owns what."""
