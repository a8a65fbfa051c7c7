"""Transfer as a run with a working directory: a head on a model folder's encoder, which is frozen or trained too."""
