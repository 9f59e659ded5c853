"""spec -> tokens: one file a family."""
