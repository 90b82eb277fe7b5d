"""One folder a paper, one file an idea."""
