"""Files that exports carry with them: they run without afloc_jax (but for `check_model_folder.py`)."""
