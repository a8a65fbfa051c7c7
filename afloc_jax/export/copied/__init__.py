"""Files that are copied into exports. They run without afloc_jax, except `check_model_folder.py`."""
