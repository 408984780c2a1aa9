"""Images by id: test sets and corpora alike."""
