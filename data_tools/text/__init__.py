"""What is done with text: folding, tokens, languages, HTML to plain text."""
