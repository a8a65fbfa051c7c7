"""The page in the browser of `afloc serve`, and the server behind it."""
