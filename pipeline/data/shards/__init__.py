"""Where a sample lies, and its bytes: indices, open files, object stores."""
