"""A run: its settings, its folder, the model built from them, and how it is opened again."""
