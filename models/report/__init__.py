"""One page of a study or of runs: a file that needs no other and no network."""
