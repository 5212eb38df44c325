"""Functions of text: folding, tokens, language detection, HTML to plain text."""
