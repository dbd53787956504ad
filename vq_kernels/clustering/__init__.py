"""k-means over the rows of all ranks, and the rows that it and revival draw."""
