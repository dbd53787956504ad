"""Images to stored codes, and priors' samples back to images."""
