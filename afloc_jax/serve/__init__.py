"""A loaded model behind a page in the browser: what `afloc serve` does."""
