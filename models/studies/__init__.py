"""The published studies that the models can redo; one file a study, one shared runner."""
