"""Where (url, caption) pairs come from: one module a source."""
